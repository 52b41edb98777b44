"""astra: a packed history, the further back the coarser, by distance alone.  arXiv:2512.08931

Differs from the paper: keys and values are averaged where the paper embeds pixels in larger patches, group by group as
entries leave the finer tier; actions and their experts are not part of a memory.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Entries, Part, Place, Sinks, State, Unit, Window
from penstock.memory.pooling import frame_size, pooled
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class Pooled(Part):
    """The newest `size` means of `group` entries each, and the entries that wait until their group is complete."""

    biased: ClassVar[bool] = True

    size: int
    group: int

    @property
    def entries(self) -> int:
        return self.size + self.group - 1

    def nbytes(self, place: Place) -> int:
        return self.entries * place.entry_bytes(biased=True) + 8

    def begin(self, place: Place) -> State:
        return {"held": place.none(biased=True), "waiting": torch.zeros(1, dtype=torch.int64)}

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """Complete groups are pooled; the oldest means leave."""
        both = Entries.join([state["held"], self.settle(arriving, place)])
        waiting = int(state["waiting"]) + len(arriving)
        old, rest = both.split(len(both) - waiting)
        whole, rest = rest.split(waiting // self.group * self.group)
        means = Entries.join([old, pooled(whole, self.group)]) if len(whole) else old
        excess = len(means) - self.size
        leaving = None
        if excess > 0:
            leaving, means = means.split(excess)
        return {"held": Entries.join([means, rest]), "waiting": torch.tensor([len(rest)])}, leaving


@dataclass(frozen=True)
class Astra(Method):
    """First frames, a window, means of `mid` entries behind it, means of `far` entries behind these.

    `frame` tokens make a frame (0: by the budget); the first `start` frames stay for ever.  The two coarse tiers take
    `share` of the budget each, the window what is left.  Together they reach back about share * (mid + far) budgets.
    Positions are ranks in the memory.
    """

    name: ClassVar[str] = "astra"
    title: ClassVar[str] = "A packed history, coarser with distance"
    source: ClassVar[str] = "arXiv:2512.08931"
    differs: ClassVar[str] = "averages keys and values where the paper uses larger patches; no actions, no experts"
    slots: ClassVar[tuple[str, ...]] = ("segments", "merging")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    frame: int = 0
    start: int = 1
    mid: int = 8
    far: int = 64
    share: float = 0.15

    def lossless(self) -> Astra:
        """All tiers keep entries as they are."""
        return dataclasses.replace(self, mid=1, far=1)

    def cascade(self, budget: int | None) -> Cascade:
        if self.mid < 1 or self.far < self.mid or self.far % self.mid:
            raise UsageError(
                f"means of {self.mid} entries cannot be joined to means of {self.far}: make far a multiple of mid."
            )
        if not 0.0 < self.share < 0.5 or self.start < 0:
            raise UsageError("astra needs a share between 0 and 0.5 and start >= 0: two coarse tiers take it each.")
        frame = frame_size(self.name, budget, self.frame, 16, self.start + 2)
        assert budget is not None
        again = self.far // self.mid
        middle = Pooled(max(1, int(self.share * budget) - self.mid + 1), self.mid)
        distant = Pooled(max(1, int(self.share * budget) - again + 1), again)
        near = budget - frame * (self.start + 1) - middle.entries - distant.entries
        if near < frame:
            raise BudgetError(
                f"a budget of {budget} has no room for a frame of {frame} beside {self.start} first ones and means of "
                f"{self.mid} and {self.far}: give at least {budget + frame - near}, or smaller means (astra:mid=N)."
            )
        return Cascade((Sinks(self.start * frame), Window(near), middle, distant), "contiguous", frame)
