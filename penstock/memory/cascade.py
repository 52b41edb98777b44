"""A cascade: segments in order, and how their entries are numbered."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import CompositionError
from penstock.memory.positions import POLICIES
from penstock.memory.segments import Everything, Segment, Sinks, Window


@dataclass(frozen=True)
class Cascade:
    """A composition, checked once when it is made.

    `positions` is one of POLICIES.  Sinks come first, `Everything` stands alone or after sinks nothing needs.
    """

    segments: tuple[Segment, ...]
    positions: str = "stream"

    def __post_init__(self) -> None:
        if self.positions not in POLICIES:
            raise CompositionError(f"unknown positions {self.positions!r}: choose one of {', '.join(POLICIES)}.")
        if not self.segments:
            raise CompositionError("a cascade needs a segment: start with Window(size) or Everything().")
        if any(isinstance(s, Sinks) for s in self.segments[1:]):
            raise CompositionError("sinks keep the first entries of the stream: put Sinks first in the cascade.")
        if any(isinstance(s, Everything) for s in self.segments) and len(self.segments) > 1:
            raise CompositionError("Everything() gives nothing up: use it alone, without other segments.")
        if all(isinstance(s, Sinks) for s in self.segments):
            raise CompositionError("sinks alone cannot see the newest entry: add Window(size) after them.")

    @property
    def sinks(self) -> int:
        """Entries that never leave."""
        first = self.segments[0]
        return first.size if isinstance(first, Sinks) else 0

    @property
    def windows(self) -> tuple[int, ...]:
        """Sizes of the windows, newest first; empty for a cascade that grows."""
        return tuple(s.size for s in self.segments if isinstance(s, Window))

    @property
    def is_bounded(self) -> bool:
        return not any(isinstance(s, Everything) for s in self.segments)

    @property
    def entries(self) -> int | None:
        """How many entries a query may read, itself included; None when that grows."""
        return self.sinks + sum(self.windows) if self.is_bounded else None

    def limited_to(self, window: int) -> Cascade:
        """What a layer with a sliding window of its own keeps: its newest min(window, entries) entries."""
        size = window if self.entries is None else min(window, self.entries)
        return Cascade((Window(size),), "stream")
