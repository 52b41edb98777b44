"""Native steps over a memory: the rings are read and written where they are; marks, snapshots and forks keep working.

A step may carry any spans: single tokens of several rows share each weight that is read, chunks are read in blocks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from penstock.core import Span
from penstock.kernels import library as lib
from penstock.kernels.weights import Unfit, Weights, obstacle, stamp
from penstock.memory import Geometry, Memory
from penstock.memory.positions import Rotary
from penstock.memory.ring import RingGroup

_KEPT: WeakKeyDictionary[nn.Module, dict[bool, tuple[Any, Weights]]] = WeakKeyDictionary()


def is_whole(memory: Memory) -> bool:
    """Whether a step over this memory can be one native call: one ring per layer."""
    return all(isinstance(group, RingGroup) and len(group.sizes) == 1 for group in memory.groups)


def weights_of(hf: nn.Module, geometry: Geometry, int8: bool = False) -> Weights:
    """The model's tiles, shared by everybody who runs it; made again when its weights were changed.  Raises Unfit."""
    kept, now = _KEPT.setdefault(hf, {}), stamp(hf)
    found = kept.get(int8)
    if found is None or found[0] != now:
        reason = obstacle(hf, geometry)
        if reason:
            raise Unfit(reason)
        kind = lib.INT8 if int8 else lib.FLOAT32 if geometry.dtype == torch.float32 else lib.BFLOAT16
        found = kept[int8] = (now, Weights(hf, geometry, kind))
    return found[1]


class Native:
    """The native step of one model on one memory."""

    def __init__(self, weights: Weights, memory: Memory, vocabulary: int) -> None:
        self.weights, self.memory, self.vocabulary = weights, memory, vocabulary
        self._run = lib.library().pk_run
        self._keep: list[Any] = []
        self._groups = (lib.Group * len(memory.groups))()
        for own, group in zip(self._groups, memory.groups):
            self._describe(own, group)
        self._layers = (lib.LayerMemory * len(memory.geometry.layers))()
        self._growing = [g for g in memory.groups if g.planner.grows]
        self._find()
        self._step = lib.StepOf(
            groups=ctypes.addressof(self._groups), memory=ctypes.addressof(self._layers), group_count=len(self._groups)
        )
        self._spans: Any = (lib.SpanOf * 1)()

    def _describe(self, own: lib.Group, group: RingGroup) -> None:
        rotary = group.rotary
        assert isinstance(rotary, Rotary)
        freq = rotary.inv_freq.double().contiguous()
        cos, sin = rotary.angles(torch.arange(group.sinks))
        cos, sin = cos.contiguous(), sin.contiguous()
        self._keep += [freq, cos, sin]
        own.inv_freq, own.sink_cos, own.sink_sin = freq.data_ptr(), cos.data_ptr(), sin.data_ptr()
        size = group.sizes[0]
        own.window = size or 0
        own.clamp = -1 if size is None or group.cascade.positions == "stream" else group.planner.entries - 1
        own.half, own.interleaved, own.sinks = freq.numel(), int(rotary.interleaved), group.sinks

    def _find(self) -> None:
        """Where the rings are now (growing ones move)."""
        for layer, (g, i) in enumerate(self._where()):
            group, own = self.memory.groups[g], self._layers[layer]
            ring = group.rings[0][i]
            own.ring, own.slots, own.group, own.rows = ring.data_ptr(), ring.shape[3], g, ring.shape[1]
            own.raw_sinks = group.raw_sinks[i].data_ptr() if group.raw_sinks else None

    def _threads(self, count: int) -> int:
        return self.weights.threads(count)

    def _where(self) -> list[tuple[int, int]]:
        return [self.memory.where[layer.index] for layer in self.memory.geometry.layers]

    def run(self, spans: Sequence[Span], tokens: Tensor, places: Tensor | None) -> Tensor | None:
        """Tokens [N] int64 into the memory, logits [k, V] at `places` [k]; inside `Memory.step(..., planned=False)`."""
        if len(self._spans) < len(spans):
            self._spans = (lib.SpanOf * len(spans))()
        for own, span in zip(self._spans, spans):
            own.start, own.row, own.count = self.memory.rows[span.row].length, span.row, span.count
        if self._growing:
            reach = max(self.memory.rows[span.row].length + span.count for span in spans)
            for group in self._growing:
                group._reserve(reach)
            self._find()
        tokens = tokens.contiguous()
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.vocabulary:
            raise IndexError(f"a token is outside of the vocabulary of {self.vocabulary}")
        step, out = self._step, None
        step.tokens, step.count = tokens.data_ptr(), len(tokens)
        step.spans, step.span_count = ctypes.addressof(self._spans), len(spans)
        step.wanted, step.threads = 0, self._threads(len(tokens))
        if places is not None:
            places = places.contiguous()
            out = torch.empty(len(places), self.vocabulary, dtype=self.memory.geometry.dtype)
            step.places, step.wanted, step.logits = places.data_ptr(), len(places), out.data_ptr()
        failed = self._run(self.weights.handle, ctypes.byref(step))
        if failed:
            raise MemoryError("there is no memory for the intermediate results of a native step")
        return out
