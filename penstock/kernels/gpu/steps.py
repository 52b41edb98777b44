"""Steps of one memory through the kernels: single tokens and whole chunks replayed, anything else run as it is.

     tables (filled by the host)        one recording per shape of step
     tokens rows positions angles  ->   embed | layer: norm QKV [place read merge] out MLP | ... | logits

The model's own code runs between the kernels; it is not known here, it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from penstock.core import Span
from penstock.kernels.gpu.chunk import Packed, ingest
from penstock.kernels.gpu.decode import Singles, decode
from penstock.kernels.gpu.graphs import Recorder, Replay, State
from penstock.kernels.gpu.launch import power_of_two
from penstock.kernels.gpu.op import attend, meant
from penstock.kernels.gpu.store import FORMATS, FP8, Store
from penstock.kernels.gpu.tables import PackedTable, SingleTable, rotary_of
from penstock.memory import Memory
from penstock.memory.positions import Rotary
from penstock.memory.ring import RingGroup

_SHAPES = 32  # kinds of steps that are kept; further ones run as they are

Logits = Literal["last", "all", "none"]
Forward = Callable[[Tensor, Any, Logits | Tensor], Tensor | None]
ForwardSingles = Callable[[Tensor, Any, Logits], Tensor | None]


def memory_obstacle(memory: Memory) -> str | None:
    """Why the kernels cannot step this memory, or None."""
    if memory.naive:
        return "the naive specification is not run by kernels"
    if not all(isinstance(group, RingGroup) for group in memory.groups):
        return "this memory moves by units"
    if any(len(group.sizes) != 1 for group in memory.groups):
        return "this cascade has several windows"
    if not memory.is_bounded:
        return "this memory grows, so its steps have no fixed shape"
    if memory.geometry.dtype not in FORMATS or memory.geometry.dtype == FP8:
        return f"the kernels know no {str(memory.geometry.dtype).removeprefix('torch.')}"
    for layer in memory.geometry.layers:
        if not isinstance(layer.encoding, Rotary) or layer.encoding.axis is not None:
            return "a layer has no plain rotary embedding"
        if layer.key_width > 256 or layer.key_width != layer.value_width:
            return "the heads are wider than 256 channels, or keys and values are not equally wide"
    return None


class KernelStep:
    """What the attention layers of one forward pass get (as memory.Step)."""

    def __init__(self, steps: Steps, given: Sequence[Singles] | Sequence[Packed]) -> None:
        self.steps, self.given = steps, given

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None = None,
        sink_logit: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As Step.attend."""
        if torch.compiler.is_compiling():
            out: Tensor = attend(query, key, value, sink_logit, layer, scale, softcap)
            return out
        return self.read(layer, query, key, value, scale=scale, softcap=softcap, sink_logit=sink_logit)

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None,
        sink_logit: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The same through the kernels, where no compiler looks."""
        group, index = self.steps.memory.where[layer]
        store, given = self.steps.stores[group][index], self.given[group]
        options: dict[str, Any] = {"scale": scale, "softcap": softcap, "sink_logit": sink_logit}
        options["wanted"] = self.steps.programs
        if isinstance(given, Singles):
            return decode(store, query, key, value, given, **options)[0][None]
        return ingest(store, query, key, value, given, **options)[0][None]


class Steps:
    """The steps of one memory.  `forward` runs the model: tokens [N], what layers attend with, which logits.

    `fused` does the same for single tokens, perhaps compiled.  `programs` is how many programs should run at once on
    the device, about twice its multiprocessors.
    """

    def __init__(
        self,
        forward: Forward,
        memory: Memory,
        recorder: Recorder | None,
        programs: int,
        fused: ForwardSingles | None = None,
    ) -> None:
        self.forward, self.memory, self.recorder, self.programs = forward, memory, recorder, programs
        self.fused: ForwardSingles = fused or forward
        self.groups = memory.groups
        self._sinks = max(group.sinks for group in self.groups)
        self.stores = [[_store(group, i) for i in range(len(group.layers))] for group in self.groups]
        self._own = [self._sink_angles(group) for group in self.groups]
        self._singles: dict[tuple[int, bool], tuple[SingleTable, Replay]] = {}
        self._chunks: dict[tuple[int, Logits], tuple[PackedTable, Replay]] = {}

    @property
    def replays(self) -> list[Replay]:
        """All kinds of step that were seen and may be replayed."""
        return [replay for _, replay in (*self._singles.values(), *self._chunks.values())]

    @property
    def note(self) -> str:
        """One phrase for people: how steps run now."""
        refused = next((r.why_not for r in self.replays if r.state is State.REFUSED), None)
        if self.recorder is None or refused:
            return f"kernels, not recorded because {refused or 'the device has no graphs'}"
        return "kernels, each kind of step one graph"

    def forget(self) -> None:
        """Drop what was recorded: steps are recorded anew."""
        self._singles.clear()
        self._chunks.clear()

    def run(self, spans: Sequence[Span], tokens: Tensor, logits: Logits | Tensor) -> Tensor | None:
        """Tokens [N] into the memory, inside `Memory.step(..., planned=False)`; logits as Attached.run."""
        starts = [self.memory.rows[span.row].length for span in spans]
        if all(s.count == 1 for s in spans) and min(starts) >= self._sinks:
            return self._run_singles(spans, starts, tokens, logits)
        if len(spans) == 1 and isinstance(logits, str):
            kind = len(tokens), logits
            if kind in self._chunks or len(self._chunks) < _SHAPES:
                return self._run_chunk(spans, starts, tokens, kind)
        table = self._packed(spans, len(tokens))
        table.fill(spans, starts, tokens)
        return self.forward(table.tokens, KernelStep(self, table.packed), logits)

    def _run_singles(
        self, spans: Sequence[Span], starts: Sequence[int], tokens: Tensor, logits: Logits | Tensor
    ) -> Tensor | None:
        """Places are a power of two, so that few kinds of step serve any number of rows."""
        kind = power_of_two(len(spans), 1), isinstance(logits, str) and logits == "none"
        if kind not in self._singles:
            made = SingleTable(self.groups, kind[0], self.memory.geometry.device)
            wanted: Logits = "none" if kind[1] else "all"
            work = partial(self._fused, made.tokens, KernelStep(self, made.singles), wanted)
            self._singles[kind] = made, Replay(work, self.recorder)
        table, replay = self._singles[kind]
        table.fill(spans, starts, tokens)
        out = replay()
        table.prepare_next(starts)
        if out is None:
            return None
        if isinstance(logits, Tensor):
            return out[logits]
        return out[len(spans) - 1 : len(spans)] if logits == "last" else out[: len(spans)]

    def _fused(self, tokens: Tensor, step: KernelStep, logits: Logits) -> Tensor | None:
        with meant(step):
            return self.fused(tokens, step, logits)

    def _run_chunk(
        self, spans: Sequence[Span], starts: Sequence[int], tokens: Tensor, kind: tuple[int, Logits]
    ) -> Tensor | None:
        if kind not in self._chunks:
            made = self._packed(spans, kind[0])
            work = partial(self.forward, made.tokens, KernelStep(self, made.packed), kind[1])
            self._chunks[kind] = made, Replay(work, self.recorder)
        table, replay = self._chunks[kind]
        table.fill(spans, starts, tokens)
        return replay()

    def _packed(self, spans: Sequence[Span], count: int) -> PackedTable:
        longest = max(span.count for span in spans)
        return PackedTable(self.groups, self._own, count, len(spans), longest, self.memory.geometry.device)

    def _sink_angles(self, group: RingGroup) -> tuple[Tensor, Tensor]:
        cos, sin = rotary_of(group).angles(torch.arange(group.sinks), group.device)
        return cos, sin


def _store(group: RingGroup, i: int) -> Store:
    """The ring of the group's layer `i`."""
    window, rotary = group.sizes[0], rotary_of(group)
    assert window is not None
    raw = group.raw_sinks[i] if group.raw_sinks else None
    return Store(group.rings[0][i], raw, group.sinks, window, rotary.width // 2, rotary.interleaved)
