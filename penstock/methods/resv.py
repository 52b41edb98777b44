"""resv: keys cluster by hash, and a query reads the clusters that carry a share of its attention.  arXiv:2512.12284

Differs from the paper: the store is bounded and on the device, the oldest entries leave; each query chooses for itself;
scores are exponentials, so that a share of their sum means something.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from penstock.errors import UsageError
from penstock.memory import Additive, Cascade, Entries, Frame, Part, Place, Query, Readable, Sinks, State, Unit, Window
from penstock.memory.merging import codes
from penstock.memory.summaries import room, wide_dtype
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class Clusters(Part):
    """The newest `size` entries that reach it, in up to `clusters` clusters; a query reads some of the clusters.

    A raw key's code says on which side of `bits` hyperplanes it is.  One after the other, keys join the cluster whose
    code, that of the key which opened it, differs in the fewest bits, if these are at most `distance`; others open one.
    When no row of the table is free they join the nearest.  A cluster whose last member leaves is free again.

    A query takes clusters by the score of their mean keys, until these carry `share` of the sum over all of count times
    exp(score).
    """

    size: int
    clusters: int
    share: float = 0.3
    distance: int = 6
    bits: int = 32
    seed: int = 0

    @property
    def entries(self) -> int:
        return self.size

    def nbytes(self, place: Place) -> int:
        row = self.bits + 8 + place.layer.key_width * wide_dtype(place).itemsize
        return (super().nbytes(place) or 0) + place.heads * (self.size * 8 + self.clusters * row)

    def begin(self, place: Place) -> State:
        heads, width, device = place.heads, place.layer.key_width, place.device
        return {
            **super().begin(place),
            "of": torch.zeros(heads, 0, dtype=torch.int64),  # each entry's cluster
            "code": torch.zeros(heads, self.clusters, self.bits, dtype=torch.bool),
            "count": torch.zeros(heads, self.clusters, dtype=torch.int64),
            "mean": torch.zeros(heads, self.clusters, width, dtype=wide_dtype(place), device=device),
        }

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """The oldest leave their clusters, then arrivals join."""
        fresh = self.settle(arriving, place)
        gone, fresh = fresh.split(max(0, len(fresh) - self.size))
        held, of, count, code = state["held"], state["of"], state["count"].clone(), state["code"].clone()
        left, held = held.split(max(0, len(held) + len(fresh) - self.size))
        count.scatter_add_(1, of[:, : len(left)], -torch.ones_like(of[:, : len(left)]))
        joined = self._join(codes(place.raw(fresh).key, self.bits, self.seed).cpu(), code, count)
        held, of = Entries.join([held, fresh]), torch.cat([of[:, len(left) :], joined], dim=1)
        mean = _means(place.raw(held).key.to(wide_dtype(place)), of, count)
        given = place.raw(Entries.join([left, gone]))
        after = {"held": held, "of": of, "code": code, "count": count, "mean": mean}
        return after, given if len(given) else None

    def _join(self, keys: Tensor, code: Tensor, count: Tensor) -> Tensor:
        """[H, U] int64: the clusters of codes [H, U, bits], in turn; `code` and `count` are changed in place."""
        heads = torch.arange(len(keys))
        found = []
        for key in keys.unbind(1):
            apart = (key[:, None] != code).sum(-1).masked_fill(count == 0, self.bits + 1)
            least, nearest = apart.min(1)
            free = count == 0
            opens = (least > self.distance) & free.any(1)
            at = torch.where(opens, free.to(torch.uint8).argmax(1), nearest)
            code[heads, at] = torch.where(opens[:, None], key, code[heads, at])
            count[heads, at] += 1
            found.append(at)
        return torch.stack(found, 1) if found else torch.zeros(len(keys), 0, dtype=torch.int64)

    def read(self, state: State, query: Query, frame: Frame, place: Place) -> Iterator[Readable | Additive]:
        """The entries of the chosen clusters."""
        held: Entries = state["held"]
        if not len(held):
            return
        mask = None
        if self.share < 1.0:
            chosen = self.choose(state, query.by_head(query.raw)).cpu()
            of = state["of"][:, None, None].expand(*chosen.shape[:3], -1)
            mask = chosen.gather(-1, of).flatten(0, 1)
        yield Readable.of(held, frame, mask=mask)

    def choose(self, state: State, query: Tensor) -> Tensor:
        """[H, group, C, clusters] bool: what raw queries [H, group, C, D] read."""
        mean: Tensor = state["mean"]
        count = state["count"].to(mean.device)[:, None, None]
        scores = query.to(mean.dtype) @ mean[:, None].transpose(-1, -2) * query.shape[-1] ** -0.5
        scores = scores.masked_fill(count == 0, float("-inf"))
        order = scores.argsort(dim=-1, descending=True, stable=True)
        mass = (scores - scores.amax(-1, keepdim=True)).exp() * count
        carried = mass.gather(-1, order).cumsum(-1)
        before = carried - mass.gather(-1, order)
        taken = (before <= self.share * carried[..., -1:]) | (self.share >= 1.0)
        chosen = torch.zeros_like(taken).scatter_(-1, order, taken)
        return chosen & (count > 0)


def _means(key: Tensor, of: Tensor, count: Tensor) -> Tensor:
    """[H, K, D]: mean keys [H, T, D] of the clusters `of` [H, T]; zero where there is none."""
    index = of.to(key.device)[..., None].expand(*of.shape, key.shape[-1])
    total = torch.zeros(*count.shape, key.shape[-1], dtype=key.dtype, device=key.device).scatter_add_(1, index, key)
    return total / count.clamp_min(1).to(key.device, key.dtype)[..., None]


@dataclass(frozen=True)
class ReSV(Method):
    """Sinks, a window of a quarter of the rest, and a clustered store of which a query reads as much as it needs.

    `share` of a query's attention, judged by mean keys, is what the clusters that it reads must carry (1: all are
    read).  Keys whose codes differ in at most `distance` of `bits` bits are one cluster; there are at most a quarter as
    many clusters as entries.  Made for frames: then let `unit` be the tokens of a frame.
    """

    name: ClassVar[str] = "resv"
    title: ClassVar[str] = "Clusters by hash, read by share of attention"
    source: ClassVar[str] = "arXiv:2512.12284"
    differs: ClassVar[str] = "bounded, all on the device; each query chooses for itself; exponential scores"
    slots: ClassVar[tuple[str, ...]] = ("segments", "retrieval", "summaries", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    sinks: int = 4
    share: float = 0.3
    distance: int = 6
    bits: int = 32
    unit: int = 16
    positions: Literal["contiguous", "stream"] = "contiguous"

    def cascade(self, budget: int | None) -> Cascade:
        if not 0.0 <= self.share <= 1.0:
            raise UsageError(f"share cannot be {self.share}: give a share of the attention from 0 to 1.")
        if self.bits < 1:
            raise UsageError(f"codes of {self.bits} bits tell no keys apart: give 1 or more.")
        left = room(self.name, budget, self.unit, self.sinks, 4)
        window = left // 4
        size = left - window
        store = Clusters(size, max(1, size // 4), self.share, self.distance, self.bits)
        return Cascade((Sinks(self.sinks), Window(window), store), self.positions, self.unit)

    def lossless(self) -> ReSV:
        """All clusters are read."""
        return replace(self, share=1.0)
