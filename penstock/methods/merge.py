"""merge: an entry that leaves the window merges into the stored one that is nearest to it.  A yardstick, unpublished.

Differs from the paper: there is none; it is what the published merging memories have in common.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from penstock.memory import Cascade, Entries, Place, Sinks, State, Unit, Window
from penstock.memory.merging import Merged, alike, bias_of, merge, most_alike
from penstock.memory.summaries import room
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class Nearest(Merged):
    """Arrivals take places while there are any; from then on each merges into the entry whose raw key is most alike.

    Keys and values become means over all that an entry stands for; its bias is the logarithm of how many.
    """

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """Fill, then merge all others at once."""
        fresh = self.settle(arriving, place)
        held: Entries = state["held"]
        mine, rest = fresh.split(min(self.size - len(held), len(fresh)))
        held, count = Entries.join([held, mine]), torch.cat([state["count"], torch.ones_like(mine.seen)], dim=1)
        if len(rest):
            target = most_alike(alike(rest.key, held.key))[1].cpu()
            held, count = merge(held, count, rest, target, average=True)
        return {"held": replace(held, bias=bias_of(count, place.device)), "count": count}, None


@dataclass(frozen=True)
class MergeMethod(Method):
    """Sinks, a window of half the rest, and merged entries: every token of the stream keeps some weight.

    `sinks` first entries stay; `window` is the share of what is left that the newest entries get.  A merged entry
    stands where its newest member stood.
    """

    name: ClassVar[str] = "merge"
    title: ClassVar[str] = "Evicted entries merge into their nearest"
    source: ClassVar[str] = "yardstick"
    differs: ClassVar[str] = "no paper: the plain form of merging, to compare others with"
    slots: ClassVar[tuple[str, ...]] = ("segments", "summaries", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    sinks: int = 4
    window: float = 0.5
    unit: int = 16
    positions: Literal["contiguous", "stream"] = "contiguous"

    def cascade(self, budget: int | None) -> Cascade:
        left = room(self.name, budget, self.unit, self.sinks, 2)
        window = min(left - 1, max(1, int(self.window * left)))
        return Cascade((Sinks(self.sinks), Window(window), Nearest(left - window)), self.positions, self.unit)
