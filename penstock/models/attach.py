"""The seam: a transformers model reads our memories instead of its own cache.

The model is not changed.  We register an attention function with transformers' `AttentionInterface` and hand the step
of the memory to the model's forward as the keyword `memory`, which transformers carries to every attention layer.  A
registered attention without a mask function gets `attention_mask=None`: the memory owns visibility.

Rotary models are run at position 0, where their rotation is the identity; the memory rotates (memory/positions.py).
Models with learned absolute positions are given the stream's own positions, up to the end of their table.

Everything that knows a version of transformers is in this file, probe.py and adapters/.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from penstock.errors import UnsupportedModel
from penstock.memory import Geometry

IMPLEMENTATION = "penstock"
Logits = Literal["last", "all", "none"]


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, memory: Any = None, softcap: float | None = None,
    sliding_window: int | None = None, s_aux: Tensor | None = None, is_causal: bool | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls in every attention layer: query [B, Hq, N, D], key and value [B, Hkv, N, D]."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if memory is None:
        memory = getattr(key, "_penstock_step", None)  # the Cache form (models/cache.py) sends its step with the keys
    if memory is not None:
        if isinstance(memory, Recorder):
            memory.note(module, sliding_window)
        out = memory.attend(module.layer_idx, query, key, value, scale=scale, softcap=softcap, sink_logit=s_aux)
        return out, None
    return _without_memory(module, query, key, value, attention_mask, scale, softcap, s_aux, is_causal), None


def _without_memory(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float,
    softcap: float | None, s_aux: Tensor | None, is_causal: bool | None,
) -> Tensor:  # fmt: skip
    """Plain attention, for parts of a model that have no memory (a vision tower) and for calls without one."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if softcap is not None or s_aux is not None or (causal and query.shape[2] != key.shape[2]):
        raise UnsupportedModel(
            "this model is attached to penstock and was called without a memory: "
            "use penstock.open, pass a penstock cache, or detach it first."
        )
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal and mask is None, scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return out.transpose(1, 2)


AttentionInterface.register(IMPLEMENTATION, attention)


class Recorder:
    """A step that stores nothing: it notes the raw queries and keys of each layer and answers with zeros.

    With attention silenced, what a layer computes depends on positions only through the layer's own encoding.
    """

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, Any]] = {}
        self._window: int | None = None

    def note(self, module: nn.Module, window: int | None) -> None:
        self._window = window

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None = None,
        sink_logit: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        self.seen[layer] = {
            "query": query.detach(), "key": key.detach(), "value_width": value.shape[-1], "window": self._window,
        }  # fmt: skip
        self._window = None
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])


@dataclass
class Attached:
    """A transformers model whose attention layers read a memory.

    `run` takes packed tokens [N] and a step planned for them.  `adapter` is set for the few families whose attention
    cannot be reached through the interface.
    """

    hf: nn.Module
    geometry: Geometry
    vocabulary: int
    previous: str | None
    adapter: Any = None

    @property
    def device(self) -> torch.device:
        return self.geometry.device

    def run(self, tokens: Tensor, step: Any, positions: Tensor | None = None, logits: Logits = "last") -> Tensor | None:
        """One forward pass: tokens [N] int64; logits [1, V] of the last token, [N, V] of all, or None.

        `positions` [N] are needed only by models with learned absolute positions.
        """
        return forward(self.hf, self.adapter, tokens, step, positions, logits)

    def detach(self) -> None:
        """Give the model back its own attention."""
        if self.adapter is not None:
            self.adapter.remove()
        elif self.previous is not None:
            self.hf.set_attn_implementation(self.previous)  # type: ignore[operator]


def forward(
    hf: nn.Module, adapter: Any, tokens: Tensor, step: Any, positions: Tensor | None, logits: Logits
) -> Tensor | None:
    """The call that hands a step to a transformers model."""
    ids = tokens[None]
    where = torch.zeros_like(ids) if positions is None else positions[None]
    keep = 0 if logits == "all" else 1
    if adapter is not None:
        with adapter.use(step):
            out = hf(input_ids=ids, use_cache=False, logits_to_keep=keep)
    else:
        out = hf(input_ids=ids, position_ids=where, use_cache=False, logits_to_keep=keep, memory=step)
    if logits == "none":
        return None
    result = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return result[0] if logits == "all" else result[0, -1:]


@contextmanager
def native(hf: nn.Module, previous: str | None) -> Iterator[None]:
    """Inside, the model uses its own attention."""
    if previous is None:
        yield
        return
    hf.set_attn_implementation(previous)  # type: ignore[operator]
    try:
        yield
    finally:
        hf.set_attn_implementation(IMPLEMENTATION)  # type: ignore[operator]
