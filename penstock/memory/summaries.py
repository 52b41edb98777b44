"""Running summaries: entries that stand for many others, changed by whatever reaches them.

They are kept in float32 at least, because a summary that takes in a thousandth of each newcomer stands still in half
precision, and raw, because the mean of rotated keys mixes phases.  They are read in the dtype of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from penstock.errors import BudgetError, UsageError
from penstock.memory.entries import Entries
from penstock.memory.frames import Frame
from penstock.memory.parts import Additive, Part, Place, Query, Readable, State


class Summary(Part):
    """Base of parts that hold summaries under "held"; an entry with a negative index seen is an empty place."""

    def is_turned(self, place: Place) -> bool:
        return False

    def begin(self, place: Place) -> State:
        none = place.none(biased=self.biased)
        wide = wide_dtype(place)
        return {"held": replace(none, key=none.key.to(wide), value=none.value.to(wide))}

    def nbytes(self, place: Place) -> int | None:
        if self.entries is None:
            return None
        more = place.heads * (place.layer.key_width + place.layer.value_width)
        more *= wide_dtype(place).itemsize - place.dtype.itemsize
        return self.entries * (place.entry_bytes(biased=self.biased) + more)

    def settle(self, arriving: Entries, place: Place) -> Entries:
        """Raw, wide, with a bias if the part's entries carry one."""
        entries, wide = place.raw(arriving), wide_dtype(place)
        entries = replace(entries, key=entries.key.to(wide), value=entries.value.to(wide))
        return entries.with_bias() if self.biased else replace(entries, bias=None)

    def read(self, state: State, query: Query, frame: Frame, place: Place) -> Iterator[Readable | Additive]:
        """All of it, in the dtype of the model."""
        held: Entries = state["held"]
        if len(held):
            yield Readable.of(replace(held, key=held.key.to(place.dtype), value=held.value.to(place.dtype)), frame)

    def remembered(self, state: State) -> Tensor:
        seen: Tensor = state["held"].seen
        return seen[seen >= 0].unique()

    def shift(self, state: State, by: int, place: Place) -> State:
        """Empty places stay empty."""
        held: Entries = state["held"]
        moved: dict[str, Any] = {"seen": torch.where(held.seen >= 0, held.seen + by, held.seen)}
        if held.place is not None:
            moved["place"] = torch.where(held.seen >= 0, held.place + by, held.place)
        return {**state, "held": replace(held, **moved)}


def wide_dtype(place: Place) -> torch.dtype:
    """The dtype of summaries: at least float32."""
    return torch.promote_types(place.dtype, torch.float32)


def room(name: str, budget: int | None, unit: int, taken: int, least: int) -> int:
    """Entries that a budget leaves behind a unit and what else is taken; errors name the option that helps."""
    if unit not in (4, 8, 16, 32, 64):
        raise UsageError(f"a unit of {unit} tokens is not possible in {name}: give 4, 8, 16, 32 or 64.")
    if budget is None:
        raise BudgetError(f"{name} needs a budget: give entries (4096) or bytes (64MiB).")
    if budget - unit - taken < least:
        raise BudgetError(
            f"a budget of {budget} is too small for {name}: give at least {unit + taken + least}, or a smaller unit."
        )
    return budget - unit - taken
