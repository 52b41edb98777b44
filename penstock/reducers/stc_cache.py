"""stc-cache: recompute only the patches that changed, layer by layer of the vision tower.  arXiv:2512.00891 (cacher)
Differs from the paper: the reference is a value of the stream, so that several streams may share a tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from penstock.reducers.base import Reducer, Stage
from penstock.registry import check_range


class TowerLayer(Protocol):
    """One block of a vision transformer: x + attention(norm1(x)), then x + mlp(norm2(x)).  Tensors are [T, D]."""

    def norm1(self, x: Tensor) -> Tensor: ...

    def qkv(self, x: Tensor, part: int) -> Tensor:
        """Queries (0), keys (1) or values (2) of x."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over all heads, with the output projection."""

    def norm2(self, x: Tensor) -> Tensor: ...

    def mlp(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class _Layer:
    """What one layer remembers of the reference frame, each [T, D]."""

    key: Tensor
    value: Tensor
    attention: Tensor
    mlp: Tensor


@dataclass(frozen=True)
class _State:
    seen: int = 0
    layers: tuple[_Layer, ...] = ()


@dataclass(frozen=True)
class StcCache(Reducer):
    """Every `interval`-th frame is computed in full and becomes the reference; in the others the `ratio` of patches
    whose keys are least like the reference's is computed, layer by layer.  Ratio 1 or interval 1 computes everything.
    """

    name: ClassVar[str] = "stc-cache"
    title: ClassVar[str] = "STC's cacher: only patches that changed go through the vision tower"
    source: ClassVar[str] = "arXiv:2512.00891"
    differs: ClassVar[str] = "one frame per step; the reference belongs to the stream, not to the process"
    stage: ClassVar[Stage] = "tower"

    ratio: float = 0.25
    interval: int = 2

    def __post_init__(self) -> None:
        check_range(self, ratio=(0.0, 1.0), interval=(1, 1 << 31))

    @classmethod
    def noop(cls) -> Self:
        return cls(interval=1)

    def start(self) -> _State:
        return _State()

    def step(self, state: _State, layers: Sequence[TowerLayer], hidden: Tensor) -> tuple[_State, Tensor]:
        """`hidden` [T, D] behind the patch embedding -> behind the last layer."""
        fits = len(state.layers) == len(layers) and all(ly.key.shape[0] == len(hidden) for ly in state.layers)
        if not fits or state.seen % self.interval == 0 or self.ratio >= 1:
            kept = []
            for layer in layers:
                hidden, reference = _in_full(layer, hidden)
                kept.append(reference)
            return _State(state.seen + 1, tuple(kept)), hidden
        for layer, reference in zip(layers, state.layers, strict=True):
            hidden = self._in_part(layer, reference, hidden)
        return _State(state.seen + 1, state.layers), hidden

    def _in_part(self, layer: TowerLayer, reference: _Layer, hidden: Tensor) -> Tensor:
        x = layer.norm1(hidden)
        key = layer.qkv(x, 1)
        likeness = torch.cosine_similarity(key.float(), reference.key.float(), dim=-1)
        fresh = likeness.argsort(stable=True)[: int(len(hidden) * self.ratio)]  # [U]
        value = reference.value.index_copy(0, fresh, layer.qkv(x[fresh], 2))
        attention = reference.attention
        if len(fresh):
            attention = attention.index_copy(0, fresh, layer.attend(layer.qkv(x[fresh], 0), key, value))
        hidden = hidden + attention
        changed = layer.mlp(layer.norm2(hidden[fresh])) if len(fresh) else reference.mlp[:0]
        return hidden + reference.mlp.index_copy(0, fresh, changed)


def _in_full(layer: TowerLayer, hidden: Tensor) -> tuple[Tensor, _Layer]:
    x = layer.norm1(hidden)
    key, value = layer.qkv(x, 1), layer.qkv(x, 2)
    attention = layer.attend(layer.qkv(x, 0), key, value)
    hidden = hidden + attention
    mlp = layer.mlp(layer.norm2(hidden))
    return hidden + mlp, _Layer(key, value, attention, mlp)
