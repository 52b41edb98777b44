"""The segments that need nothing but the index of an entry: first ones, newest ones, all.

As declarations they are run by `ring.py`, token by token, when a cascade consists of nothing else; in any other
company they are parts like all others, run by `flow.py`.  `naive.py` runs them literally.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from penstock.errors import BudgetError
from penstock.memory.entries import Entries
from penstock.memory.frames import Frame
from penstock.memory.parts import Additive, Part, Place, Query, Readable, State, Unit
from penstock.memory.vector import Vector


@dataclass(frozen=True)
class Sinks(Part):
    """The first `size` entries of the stream, for ever."""

    role: ClassVar[str] = "sinks"

    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise BudgetError(f"sinks must be 0 or more, got {self.size}: give the number of first tokens to keep.")

    @property
    def entries(self) -> int:
        return self.size

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """The first to come stay."""
        held: Entries = state["held"]
        room = self.size - len(held)
        if room <= 0:
            return state, arriving
        mine, rest = arriving.split(min(room, len(arriving)))
        return {"held": Entries.join([held, self.settle(mine, place)])}, rest

    def shift(self, state: State, by: int, place: Place) -> State:
        """Sinks stay where they are."""
        return state


@dataclass(frozen=True)
class Window(Part):
    """The newest `size` entries that reach it; the oldest leaves first."""

    role: ClassVar[str] = "window"

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise BudgetError(f"a window must keep at least 1 entry, got {self.size}: raise the budget.")

    @property
    def entries(self) -> int:
        return self.size

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """The oldest leave."""
        both = Entries.join([state["held"], self.settle(arriving, place)])
        excess = len(both) - self.size
        if excess <= 0:
            return {"held": both}, None
        leaving, staying = both.split(excess)
        return {"held": staying}, place.raw(leaving)


@dataclass(frozen=True)
class Everything(Part):
    """Every entry: grows with the stream.  The reference that bounded memories are compared with."""

    role: ClassVar[str] = "window"

    @property
    def entries(self) -> None:
        return None

    def begin(self, place: Place) -> State:
        """Growing tensors, turned or raw."""
        none = place.none()
        columns = {
            name: Vector.empty((t.shape[0], *t.shape[2:]), t.dtype, t.device, axis=1)
            for name, t in none.columns().items()
        }
        return dict(columns)

    def _all(self, state: State, place: Place) -> Entries:
        columns = {name: value.data for name, value in state.items()}
        return Entries(**columns, turned=self.is_turned(place))

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """All stay."""
        columns = self.settle(arriving, place).columns()
        return {name: value.append(columns[name]) for name, value in state.items()}, None

    def read(self, state: State, query: Query, frame: Frame, place: Place) -> Iterator[Readable | Additive]:
        """Everything."""
        held = self._all(state, place)
        if len(held):
            yield Readable.of(held, frame)

    def held(self, state: State) -> Tensor | None:
        seen: Tensor = state["seen"].data
        return seen

    def remembered(self, state: State) -> Tensor:
        seen: Tensor = state["seen"].data[0] if len(state["seen"]) else torch.zeros(0, dtype=torch.int64)
        return seen


Segment = Part
