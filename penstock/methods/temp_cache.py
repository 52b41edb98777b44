"""temp-cache: keys that are nearly equal become one entry, weighted by its count.  arXiv:2602.01801

Differs from the paper: a hard limit, beyond which rare old entries leave; a merged entry keeps its key and stands where
its newest member stood.  The paper's sparse attentions (AnnCA, AnnSA) are other mechanisms and not here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from penstock.errors import UsageError
from penstock.memory import Cascade, Entries, Place, Sinks, State, Unit
from penstock.memory.merging import Merged, alike, bias_of, codes, merge, most_alike
from penstock.memory.summaries import room
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class Duplicates(Merged):
    """Each arrival joins the entry most like it, if the cosine of their raw keys is `threshold` or more.

    Entries of the arriving unit do not join each other.  `search` finds the most alike among all (`exact`), among keys
    rounded to 8 bits (`quantised`), or among those in the same bucket of one of `tables` hashes of `bits` bits (`lsh`).
    When there are too many, the entry leaves whose logarithm of the count, less its age in sizes of the store, is
    least.
    """

    threshold: float = 0.95
    search: str = "exact"
    bits: int = 8
    tables: int = 4
    seed: int = 0

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """Join, append, and let the least leave."""
        fresh = self.settle(arriving, place)
        held, count, target = state["held"], state["count"], self.match(fresh.key, state["held"])
        if len(held):
            held, count = merge(held, count, fresh, target, average=False)
        joined = target >= 0
        fresh = replace(fresh, seen=fresh.seen.masked_fill(joined, -1))
        both, count = Entries.join([held, fresh]), torch.cat([count, (~joined).to(count.dtype)], dim=1)
        used = count > 0
        age = (unit.start + unit.count - both.seen).double()
        worth = torch.where(used, count.clamp_min(1).double().log() - age / self.size, float("-inf"))
        room = min(self.size, int(used.sum(1).max()))
        stay = worth.argsort(dim=1, descending=True, stable=True)[:, :room]
        stay = stay.gather(1, both.seen.gather(1, stay).argsort(dim=1, stable=True))
        count = count.gather(1, stay)
        return {"held": replace(both.take(stay), bias=bias_of(count, place.device)), "count": count}, None

    def match(self, key: Tensor, held: Entries) -> Tensor:
        """[H, U] int64: the entry that each arriving key [H, U, D] joins, or -1."""
        none = torch.full(key.shape[:2], -1)
        if not len(held) or self.threshold > 1.0:
            return none
        near = self._rounded(key, held.key) if self.search == "quantised" else alike(key, held.key)
        if self.search == "lsh":
            buckets = [
                codes(x, self.bits * self.tables, self.seed).unflatten(-1, (-1, self.bits)) for x in (key, held.key)
            ]
            meet = (buckets[0][:, :, None] == buckets[1][:, None]).all(-1).any(-1)
            near = near.masked_fill(~meet, -2.0)
        near = near.masked_fill((held.seen < 0).to(near.device)[:, None], -2.0)
        best, index = most_alike(near)
        return torch.where(best.cpu() >= self.threshold, index.cpu(), none)

    def _buckets(self, key: Tensor) -> Tensor:
        """[H, T, tables] int64: the bucket of each key [H, T, D] in each table."""
        sides = codes(key, self.bits * self.tables, self.seed).unflatten(-1, (-1, self.bits))
        return (sides.long() << torch.arange(self.bits, device=key.device)).sum(-1)

    @staticmethod
    def _rounded(a: Tensor, b: Tensor) -> Tensor:
        """[H, U, T]: cosines of keys whose directions are rounded to whole 127ths of their largest channel."""
        whole = [(x / x.abs().amax(-1, keepdim=True).clamp_min(1e-30) * 127).round() for x in (a, b)]
        return alike(whole[0], whole[1])


@dataclass(frozen=True)
class TempCache(Method):
    """A store that grows with what is new in the stream, up to the budget.

    `sinks` first entries stay; each unit's entries join those in the store whose raw keys have a cosine of `threshold`
    or more with theirs (above 1: none), by an `exact` search or one of the two approximate ones.  Made for frames: then
    let `unit` be the tokens of a frame.
    """

    name: ClassVar[str] = "temp-cache"
    title: ClassVar[str] = "Near-duplicate keys merge, weighted by count"
    source: ClassVar[str] = "arXiv:2602.01801"
    differs: ClassVar[str] = "a hard limit, rare old entries leave; the merged key stands where the newest stood"
    slots: ClassVar[tuple[str, ...]] = ("segments", "retention", "summaries", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    sinks: int = 4
    threshold: float = 0.95
    search: Literal["exact", "lsh", "quantised"] = "exact"
    unit: int = 16
    seed: int = 0
    positions: Literal["contiguous", "stream"] = "contiguous"

    def cascade(self, budget: int | None) -> Cascade:
        if self.threshold <= 0.0:
            raise UsageError(f"threshold cannot be {self.threshold}: give a cosine above 0 (above 1, nothing merges).")
        size = room(self.name, budget, self.unit, self.sinks, self.unit)
        store = Duplicates(size, self.threshold, self.search, seed=self.seed)
        return Cascade((Sinks(self.sinks), store), self.positions, self.unit)

    def lossless(self) -> TempCache:
        """Nothing is alike enough."""
        return replace(self, threshold=2.0)
