"""deep-forcing: half the window as sinks, and between them and the newest frames what recent queries ask for.

arXiv:2512.05081, for autoregressive video diffusion.  Differs from the paper: works on any stream, a block of `frame`
tokens at a time (there is one pass per block, no denoising steps); each key-value head chooses for itself; how many
frames are compressed away at once is a power of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Entries, Place, Sinks, State, Unit
from penstock.memory.retention import Retained, check_unit, coarse, stood
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class Participative(Retained):
    """The entries with the largest sum of raw products with the queries of the recent entries.

    The sum over a unit's queries is one vector per query head, rotated relative to the unit's start: products are
    linear, so a later turn by the unit's place gives the sum of all its products.
    """

    needs_queries: ClassVar[bool] = True

    def begin(self, place: Place) -> State:
        """With the sums of the recent units: "asked" [Hq, units, D], newest last."""
        heads, width = place.heads * place.group, place.layer.key_width
        return {**super().begin(place), "asked": torch.zeros(heads, 0, width, device=place.device)}

    def nbytes(self, place: Place) -> int:
        """Entries, and one vector per query head for each recent unit."""
        units = self.recent // place.unit
        return super().nbytes(place) + 4 * units * place.heads * place.group * place.layer.key_width

    def observe(self, state: State, both: Entries, unit: Unit, place: Place) -> State:
        """Sum up the unit's queries."""
        assert unit.query is not None
        asked = place.turn(unit.query.float(), torch.arange(unit.count)).sum(1, keepdim=True)
        units = self.recent // place.unit
        return {"asked": torch.cat([state["asked"], asked], dim=1)[:, -units:].clone()}

    def score(self, state: State, unit: Unit, place: Place) -> Tensor:
        """Of each head, summed over its query heads."""
        assert unit.frame is not None
        held: Entries = state["held"]
        key = place.turn(held.key, stood(held, unit)).float()  # [H, T, D]
        asked = state["asked"]
        start = unit.frame.query[0] - unit.count * torch.arange(asked.shape[1] - 1, -1, -1)
        whole = place.turn(asked, start).sum(1)  # [Hq, D]
        by_head = whole.reshape(place.heads, place.group, -1).sum(1)
        return coarse((key * by_head[:, None]).sum(-1))


class Frames(NamedTuple):
    """A budget in frames, the block that is being written among them."""

    all: int  # the window
    sinks: int
    recent: int
    at_once: int  # compressed away when the window is full


def _share(share: float, count: int) -> int:
    return int(share * count + 1e-9)


@dataclass(frozen=True)
class DeepForcing(Method):
    """For streams whose first part should hold the rest together: a deep sink, right before what is new.

    `sinks` (10 of 21 frames) and `recent` (4 of 21) are shares of the budget; of the frames between, the tokens that
    recent queries ask for most survive each compression.  `frame` is the number of tokens that a block has.
    """

    name: ClassVar[str] = "deep-forcing"
    title: ClassVar[str] = "Deep sinks and compression by participation"
    source: ClassVar[str] = "arXiv:2512.05081"
    differs: ClassVar[str] = "any stream, by blocks; each key-value head chooses; 2^n frames compressed away at once"
    slots: ClassVar[tuple[str, ...]] = ("retention", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    frame: int = 8
    sinks: float = 10 / 21
    recent: float = 4 / 21
    compressed: float = 5 / 21
    positions: Literal["contiguous", "stream"] = "contiguous"

    def frames(self, budget: int | None) -> Frames:
        """How many frames of a budget are what."""
        check_unit(self.frame)
        if budget is None:
            raise BudgetError("deep-forcing needs a budget: give entries (4096) or bytes (64MiB).")
        if not 0 < self.sinks + self.recent + self.compressed < 1 or min(self.sinks, self.recent, self.compressed) < 0:
            raise UsageError("deep-forcing needs shares of sinks, recent and compressed that sum up to less than 1.")
        count = budget // self.frame
        at_once = 1
        while 2 * at_once <= _share(self.compressed, count):
            at_once *= 2
        found = Frames(count, _share(self.sinks, count), max(1, _share(self.recent, count)), at_once)
        if count - found.sinks - found.recent - at_once < 1:
            raise BudgetError(
                f"a budget of {budget} is {count} frames of {self.frame} tokens, too few for sinks, candidates and "
                f"recent frames: raise the budget, or make frames smaller (deep-forcing:frame=N)."
            )
        return found

    def cascade(self, budget: int | None) -> Cascade:
        found = self.frames(budget)
        size = found.all - 1 - found.sinks
        part = Participative(size * self.frame, found.recent * self.frame, (size + 1 - found.at_once) * self.frame)
        return Cascade((Sinks(found.sinks * self.frame), part), self.positions, self.frame)
