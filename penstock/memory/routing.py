"""Segments by kind of token: text, vision, sound and answers kept apart, in one cascade.

    ByKind((((TEXT, ANSWER), (Sinks(512), Window(1024))), ((VISION,), (FrameWindow(32, 128),))))

sends text through sinks and a window of its own and vision through a window of whole frames.  Entries of kinds that no
route names pass through to the next segment of the cascade, like all that the routes give up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import lcm
from typing import ClassVar

import torch
from torch import Tensor

from penstock.errors import BudgetError, CompositionError
from penstock.memory.entries import Entries
from penstock.memory.frames import Frame, frame
from penstock.memory.parts import Offer, Part, Place, Query, State, Unit
from penstock.memory.segments import Everything

Route = tuple[tuple[int, ...], tuple[Part, ...]]  # kinds (core.Kind), and the parts that their entries flow through


@dataclass(frozen=True)
class ByKind(Part):
    """Routes: kinds of token, each with a cascade of parts.

    Heads may hold different entries, but equally many of each kind: put parts that choose by head behind or inside.
    Within a route, sinks are the first entries of its kinds.  All parts number their entries together.
    """

    routes: tuple[Route, ...]

    def __post_init__(self) -> None:
        kinds = [kind for kinds, _ in self.routes for kind in kinds]
        if not kinds or not all(kinds and parts for kinds, parts in self.routes):
            raise CompositionError("a route needs kinds and parts: leave empty ones out.")
        if len(set(kinds)) != len(kinds):
            raise CompositionError(f"a kind takes one route only, got {sorted(kinds)}: name each once.")
        for part in self.parts:
            name = type(part).__name__
            if part.dynamic:
                raise CompositionError(f"{name} chooses per query what it reads: put it behind ByKind, not inside.")
            if isinstance(part, Everything):
                raise CompositionError("Everything() cannot be numbered with other routes: use Window(size).")

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts of all routes, in the order in which their entries are joined."""
        return tuple(part for _, parts in self.routes for part in parts)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A prefix per part, for the names in the state."""
        return tuple(f"{r}.{p}." for r, (_, parts) in enumerate(self.routes) for p in range(len(parts)))

    # What the parts declare, taken together.

    @property
    def needs_queries(self) -> bool:  # type: ignore[override]
        return any(part.needs_queries for part in self.parts)

    @property
    def needs_mass(self) -> bool:  # type: ignore[override]
        return any(part.needs_mass for part in self.parts)

    @property
    def aligned(self) -> int:  # type: ignore[override]
        return lcm(*(part.aligned for part in self.parts))

    @property
    def entries(self) -> int | None:
        sizes = [part.entries for part in self.parts]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def nbytes(self, place: Place) -> int | None:
        sizes = [part.nbytes(place) for part in self.parts]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def check(self, place: Place) -> None:
        for part in self.parts:
            part.check(place)

    # What they do, one after the other.

    def begin(self, place: Place) -> State:
        return self._joined([part.begin(place) for part in self.parts])

    def _joined(self, states: list[State]) -> State:
        return {name + key: value for name, state in zip(self.names, states) for key, value in state.items()}

    def _split(self, state: State) -> list[State]:
        return [
            {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}
            for name in self.names
        ]

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """Each kind takes its route; what comes out of them leaves in stream order."""
        states, given, i = self._split(state), [], 0
        unnamed = torch.ones_like(arriving.kind, dtype=torch.bool)
        for kinds, parts in self.routes:
            mine = torch.isin(arriving.kind, torch.tensor(kinds, dtype=torch.uint8))
            unnamed &= ~mine
            flowing: Entries | None = arriving.where(mine)
            for part in parts:
                if flowing is not None and len(flowing):
                    states[i], flowing = part.admit(states[i], flowing, unit, place)
                i += 1
            given.append(flowing)
        given.append(arriving.where(unnamed))
        left = [entries for entries in given if entries is not None and len(entries)]
        return self._joined(states), Entries.join(left).ordered() if left else None

    def read(self, state: State, query: Query, frame: Frame, place: Place) -> Iterator[Offer]:
        """What each part offers, where the policy puts a part of its role."""
        start = 0
        for part, mine in zip(self.parts, self._split(state)):
            held = part.held(mine)
            count = 0 if held is None else held.shape[1]
            yield from part.read(mine, query, self._frame(part, query, frame, place, start, count), place)
            start += count

    def _frame(self, part: Part, query: Query, whole: Frame, place: Place, start: int, count: int) -> Frame:
        """The part's share of the frame."""
        if whole.policy != "contiguous":
            return frame(place.positions, part.role, query.at, query.seen, place.cap, None, 0)
        position = None if whole.position is None else whole.position[:, start : start + count]
        return Frame(whole.policy, whole.query, position, whole.base)

    def held(self, state: State) -> Tensor | None:
        held = [part.held(mine) for part, mine in zip(self.parts, self._split(state))]
        return torch.cat([seen for seen in held if seen is not None], dim=1)

    def remembered(self, state: State) -> Tensor:
        return torch.cat([part.remembered(mine) for part, mine in zip(self.parts, self._split(state))]).unique()

    def shift(self, state: State, by: int, place: Place) -> State:
        return self._joined([part.shift(mine, by, place) for part, mine in zip(self.parts, self._split(state))])


@dataclass(frozen=True)
class FrameWindow(Part):
    """The newest `count` frames of `frame` entries each; the oldest leave whole.

    It counts the entries that reach it, so it stands where nothing but frames arrives: in a route of ByKind.
    """

    role: ClassVar[str] = "window"

    count: int
    frame: int = 1

    def __post_init__(self) -> None:
        if self.count < 0 or self.frame < 1:
            raise BudgetError(
                f"{self.count} frames of {self.frame} entries cannot be kept: give 0 or more, of 1 or more."
            )

    @property
    def entries(self) -> int:
        return self.count * self.frame

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """What is held begins where a frame does, so whole frames leave from its front."""
        both = Entries.join([state["held"], self.settle(arriving, place)])
        frames = -(-(len(both) - self.entries) // self.frame)
        if frames <= 0:
            return {"held": both}, None
        leaving, staying = both.split(min(len(both), frames * self.frame))
        return {"held": staying}, place.raw(leaving)


__all__ = ["ByKind", "FrameWindow", "Route"]
