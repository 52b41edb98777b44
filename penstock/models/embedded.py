"""Steps of embeddings: the call that gives a model pictures beside token ids, and where their positions go.

A position of three axes is split in two: a part that the memory counts (one number per entry, `at`), and what the entry
is off from it on each axis (`offsets`).  The model turns queries and keys by the offsets itself, with its own sections
of the rotary embedding; the memory turns what it stores by `at`, as it turns text.  Rotations add up, so the position
on every axis is the sum, and re-basing shifts all axes alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from penstock.errors import CompositionError, UnsupportedModel
from penstock.memory.cascade import Cascade, Heads, Placement
from penstock.memory.segments import Sinks, Window

_UNIT = 16  # tokens


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a step gives a model instead of token ids.

    `offsets` turn keys and queries before the memory sees them, `at` is where the memory counts them: the position of
    an entry on each axis is the sum.
    """

    embeddings: Tensor | None = None  # [N, hidden]; None: the embeddings of the token ids
    offsets: Tensor | None = None  # [axes, N] int64
    at: Tensor | None = None  # [N] int64
    visual: Tensor | None = None  # [N] bool: which tokens are pictures
    deep: tuple[Tensor, ...] = ()  # [pictures in the step, hidden] each

    def cut(self, start: int, stop: int) -> Inputs:
        """Tokens [start, stop)."""
        inside = slice(start, stop)
        deep = self.deep
        if deep and self.visual is not None:
            first, last = int(self.visual[:start].sum()), int(self.visual[:stop].sum())
            deep = tuple(layer[first:last] for layer in deep)
        return Inputs(
            None if self.embeddings is None else self.embeddings[inside],
            None if self.offsets is None else self.offsets[:, inside],
            None if self.at is None else self.at[inside],
            None if self.visual is None else self.visual[inside],
            deep,
        )


def language_parts(hf: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The language model and the output layer of a vision-language model."""
    inner: Any = getattr(hf, "model", None)
    language = getattr(inner, "language_model", None) or getattr(inner, "text_model", None)
    head = hf.get_output_embeddings() if hasattr(hf, "get_output_embeddings") else None  # type: ignore[operator]
    if language is None or head is None:
        raise UnsupportedModel(
            f"{type(hf).__name__} has no language part that takes embeddings: it can read text only."
        )
    return language, head


def forward_embedded(
    hf: nn.Module, tokens: Tensor, step: Any, inputs: Inputs, logits: str | Tensor
) -> Tensor | None:  # fmt: skip
    """As attach.forward, for a step with embeddings or offsets."""
    language, head = language_parts(hf)
    x = inputs.embeddings
    if x is None:
        x = hf.get_input_embeddings()(tokens)  # type: ignore[operator]
    where = torch.zeros_like(tokens)[None] if inputs.offsets is None else inputs.offsets[:, None]
    extra: dict[str, Any] = {}
    if inputs.deep and inputs.visual is not None and bool(inputs.visual.any()):
        extra = {"visual_pos_masks": inputs.visual[None], "deepstack_visual_embeds": list(inputs.deep)}
    out = language(inputs_embeds=x[None], position_ids=where, use_cache=False, memory=step, **extra)
    if isinstance(logits, str) and logits == "none":
        return None
    hidden = out.last_hidden_state[0]
    kept = hidden[logits] if isinstance(logits, Tensor) else hidden if logits == "all" else hidden[-1:]
    result: Tensor = head(kept)
    return result


def place(step: Any, at: Tensor | None) -> None:
    """Tell the plans of a step where its tokens stand."""
    if at is not None:
        for plan in step.plans:
            plan.at = at


def placed(cascades: Sequence[Placement], name: str) -> list[Placement]:
    """The same cascades with positions that are stored with the entries, for positions of three axes.

    Raises CompositionError where a composition numbers entries in a way of its own.
    """
    return [_placed(cascade, name) for cascade in cascades]


def _placed(cascade: Placement, name: str) -> Placement:
    if isinstance(cascade, Heads):
        return Heads(tuple((heads, _cascade(inner, name)) for heads, inner in cascade.branches))
    return _cascade(cascade, name)


def _cascade(cascade: Cascade, name: str) -> Cascade:
    plain = all(isinstance(s, (Sinks, Window)) for s in cascade.segments)
    positions = "clamped" if plain and cascade.positions == "contiguous" else cascade.positions  # the same distances
    if cascade.apart or positions == "contiguous":
        raise CompositionError(
            f"{name} gives pictures positions of three axes, which this memory would number anew one by one: give it "
            "positions=stream or positions=clamped where it has them, as in rekv:positions=clamped."
        )
    unit, segments = cascade.unit, cascade.segments
    if unit == 1:  # such cascades move by units: their tail takes its room from the window
        last = segments[-1]
        unit = max(1, min(_UNIT, last.size // 2)) if isinstance(last, Window) else _UNIT
        if isinstance(last, Window):
            segments = (*segments[:-1], Window(max(1, last.size - unit)))
    return replace(cascade, segments=segments, positions=positions, unit=unit, apart=True)
