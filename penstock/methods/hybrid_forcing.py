"""hybrid-forcing: what leaves the window goes on in a linear memory of fixed size.  arXiv:2604.10103

Differs from the paper: the learned output projection is one number times the identity; each query chooses its blocks
for itself, so that the result does not depend on chunk sizes; no entry is both a sink and absorbed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from penstock.errors import UsageError
from penstock.memory import Additive, Cascade, Entries, Frame, Part, Place, Query, Readable, Sinks, State, Unit, Window
from penstock.memory.parts import Offer
from penstock.memory.summaries import room, wide_dtype
from penstock.methods.base import LAWS, Method

_EPSILON = 1e-6


@dataclass(frozen=True)
class Linear(Part):
    """Means over all entries that reached it: of key times value, and of the positive part of the key.

    A query adds `gain` times (query M) / (relu(query) z).  With `features` "paper" the keys of M are raw and the query
    stands a fixed distance behind them, with "relu" both sides of M are positive parts, as those of z: then what is
    added is a mean of values.
    """

    gain: float
    features: str = "paper"

    @property
    def entries(self) -> int:
        return 0

    def nbytes(self, place: Place) -> int:
        layer = place.layer
        return place.heads * layer.key_width * (layer.value_width + 1) * wide_dtype(place).itemsize + 8

    def begin(self, place: Place) -> State:
        shape, dtype = (place.heads, place.layer.key_width), wide_dtype(place)
        return {
            "products": torch.zeros(*shape, place.layer.value_width, dtype=dtype, device=place.device),
            "keys": torch.zeros(shape, dtype=dtype, device=place.device),
            "count": torch.zeros(1, dtype=torch.int64),
        }

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """Each entry is absorbed once."""
        entries, dtype = place.raw(arriving), wide_dtype(place)
        key, value = entries.key.to(dtype), entries.value.to(dtype)
        left = key if self.features == "paper" else key.relu()
        before = int(state["count"])
        after = before + len(entries)
        return {
            "products": (before * state["products"] + left.transpose(1, 2) @ value) / after,
            "keys": (before * state["keys"] + key.relu().sum(1)) / after,
            "count": torch.tensor([after]),
        }, None

    def read(self, state: State, query: Query, frame: Frame, place: Place) -> Iterator[Offer]:
        """Nothing until something was absorbed."""
        if not self.gain or not int(state["count"]):
            return
        raw = query.by_head(query.raw).to(wide_dtype(place))  # [H, group, C, D]
        asking = raw.relu()
        if self.features == "paper":
            away = query.to(torch.full_like(query.at, place.cap))  # absorbed keys stand at 0, as far as anything read
            asking = query.by_head(away).to(raw.dtype)
        weight = (raw.relu() @ state["keys"][:, None, :, None]) + _EPSILON
        out = asking @ state["products"][:, None] / weight
        yield Additive(self.gain * out.flatten(0, 1))


@dataclass(frozen=True)
class SparseWindow(Window):
    """A window of which each query reads the `ratio` of blocks whose mean keys score highest, at least one.

    Blocks are `block` consecutive entries of what is held, the last one shorter.  Mean keys are centred: what all keys
    have in common does not count.
    """

    ratio: float = 1.0
    block: int = 64

    def read(self, state: State, query: Query, frame: Frame, place: Place) -> Iterator[Offer]:
        """The chosen blocks."""
        held: Entries = state["held"]
        count = -(-len(held) // self.block)
        some = max(1, round(self.ratio * count))
        if some >= count:
            yield from super().read(state, query, frame, place)
            return
        key, position = held.key, frame.of(held)
        if not held.turned:
            key = place.turn(key, position)
        means = self._means(key.to(wide_dtype(place)))
        asking = query.by_head(query.to(frame.query)).to(means.dtype)
        scores = (asking @ means[:, None].transpose(-1, -2)).flatten(0, 1)  # [Hq, C, blocks]
        best = scores.topk(some, dim=-1).indices
        chosen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter_(-1, best, True)
        mask = chosen.repeat_interleave(self.block, -1)[..., : len(held)].to("cpu")
        whole = replace(held, key=key, turned=True)
        yield Readable.of(whole, frame, mask=mask)

    def _means(self, key: Tensor) -> Tensor:
        """[H, blocks, D]: mean keys of the blocks, less the mean of all keys [H, T, D]."""
        centred = key - key.mean(1, keepdim=True)
        means = [block.mean(1) for block in centred.split(self.block, 1)]
        return torch.stack(means, 1)


@dataclass(frozen=True)
class HybridForcing(Method):
    """Sinks, a window of which each query reads a part, and a linear memory of everything older.

    `sinks` entries (0: a third of the budget) stay; of the window's blocks of `unit` entries a query reads the share
    `ratio`.  `gain` stands for the paper's learned projection, which is zero before training; `features` "relu" makes
    the linear memory a mean of values, "paper" is the published pair of unlike kernels.
    """

    name: ClassVar[str] = "hybrid-forcing"
    title: ClassVar[str] = "Sinks, a block-sparse window and a linear memory"
    source: ClassVar[str] = "arXiv:2604.10103"
    differs: ClassVar[str] = "an untrained projection, gain x identity; blocks chosen per query; sinks never absorbed"
    slots: ClassVar[tuple[str, ...]] = ("segments", "summaries", "retrieval", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    sinks: int = 0
    ratio: float = 0.2
    gain: float = 0.1
    unit: int = 16
    features: Literal["relu", "paper"] = "relu"
    positions: Literal["clamped", "contiguous"] = "clamped"

    def cascade(self, budget: int | None) -> Cascade:
        if not 0.0 <= self.ratio <= 1.0:
            raise UsageError(f"ratio cannot be {self.ratio}: give a share from 0 to 1.")
        sinks = self.sinks or max(1, (budget or 0) // 3)
        window = room(self.name, budget, self.unit, sinks, 1)
        parts = (Sinks(sinks), SparseWindow(window, self.ratio, self.unit), Linear(self.gain, self.features))
        return Cascade(parts, self.positions, self.unit)

    def lossless(self) -> HybridForcing:
        """The projection is zero and the window is read whole."""
        return replace(self, gain=0.0, ratio=1.0)
