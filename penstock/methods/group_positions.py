"""group-positions: what is read and what is written count positions apart, and reading never sees writing.

arXiv:2505.16983
Differs from the paper: a window on each side and sinks on the reading one; both counters begin at 0 (or `gap`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from penstock.core import Kind
from penstock.errors import BudgetError, CompositionError, UsageError
from penstock.memory import Alibi, Cascade, Geometry, Place, Placement, Sinks, State, Window
from penstock.memory.routing import ByKind, FrameWindow
from penstock.methods.base import LAWS, Method

_SOURCE = (int(Kind.TEXT), int(Kind.VISION), int(Kind.AUDIO))
_TARGET = int(Kind.ANSWER)


@dataclass(frozen=True)
class Sides(ByKind):
    """What is read, and what is written."""

    def begin(self, place: Place) -> State:
        """Where a memory is made; a plan of its bytes needs no refusal."""
        index = place.layer.index
        if place.layer.window is not None:
            raise CompositionError(
                f"group-positions cannot keep both sides apart in layer {index}, which has a window of its own: "
                "use a model whose layers read everything, or memory=streaming-llm."
            )
        if isinstance(place.encoding, Alibi):  # what is read late would stand in front of what was written early
            raise CompositionError(
                f"group-positions lets keys stand in front of queries, which ALiBi in layer {index} rewards: "
                "use a rotary model, or memory=streaming-llm."
            )
        return super().begin(place)


@dataclass(frozen=True)
class GroupPositions(Method):
    """For models that write while they still read (translation, captions) and were trained with grouped positions.

    Tokens read (the source) compute what they would if nothing were written between them; tokens written (the target,
    kind ANSWER) see the source read so far and the target.  The first `sinks` source tokens stay, and windows hold the
    newest of each side; `target` is the target's share of the budget.  `positions`: `clamped` stops the distance of the
    sinks, `stream` lets it grow.  The counters drift apart as fast as the stream is read and written at unequal rates.
    `gap` is the first position of what is written: 0 is the group-decoupled scheme of Speak While Watching, its
    gap-isolated one has 10000 and ends where reading gets there.  `overlap` is its overlapped scheme: writing goes on
    from the position that reading had reached when the first token was written.  Memory changes every `unit` tokens.
    Every layer must read everything.
    """

    name: ClassVar[str] = "group-positions"
    title: ClassVar[str] = "Source and target count positions apart"
    source: ClassVar[str] = "arXiv:2505.16983"
    differs: ClassVar[str] = "a window on each side and sinks on the reading one; both counters begin at 0"
    slots: ClassVar[tuple[str, ...]] = ("segments", "placement", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    sinks: int = 4
    target: float = 0.4
    positions: Literal["clamped", "stream"] = "clamped"
    unit: int = 8
    gap: int = 0
    overlap: bool = False

    def lossless(self) -> GroupPositions:
        """All of the budget for the source."""
        return replace(self, target=0.0)

    def sizes(self, budget: int | None) -> tuple[int, int]:
        """(source window, target window) of a budget."""
        if budget is None:
            raise BudgetError("group-positions needs a budget: give entries (4096) or bytes (64MiB).")
        if not 0 <= self.target < 1 or self.unit < 1 or self.gap < 0:
            raise UsageError("group-positions needs a target share from 0 to below 1, a unit from 1 and a gap from 0.")
        if self.gap and self.overlap:
            raise UsageError("gap and overlap of group-positions are two schemes: give one of them.")
        room = budget - self.unit - self.sinks
        target = int(self.target * max(0, room))
        if room - target < 1 or (self.target and not target):
            raise BudgetError(
                f"a budget of {budget} is too small for {self.sinks} sinks, a unit of {self.unit} and two windows: "
                f"give at least {self.unit + self.sinks + int(1 / (self.target or 1)) + 1}, or fewer sinks."
            )
        return room - target, target

    def cascade(self, budget: int | None) -> Cascade:
        source, target = self.sizes(budget)
        routes = ((_SOURCE, (Sinks(self.sinks), Window(source))), ((_TARGET,), (FrameWindow(target),)))
        blind = tuple((kind, _TARGET) for kind in _SOURCE)
        return Cascade(
            (Sides(routes),), self.positions, self.unit, blind, apart=True, gap=self.gap, overlap=self.overlap
        )

    def cascades(self, geometry: Geometry, budget: int | None) -> tuple[Placement, ...]:
        """The same everywhere: layers with a window of their own are refused where the memory is made."""
        return (self.cascade(budget),) * len(geometry.layers)
