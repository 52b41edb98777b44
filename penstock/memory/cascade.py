"""A cascade: segments in order, how their entries are numbered, and which heads it serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from penstock.errors import CompositionError
from penstock.memory.parts import Part
from penstock.memory.positions import POLICIES
from penstock.memory.segments import Everything, Sinks, Window


@dataclass(frozen=True)
class Cascade:
    """A composition, checked once when it is made.

    `positions` is one of POLICIES.  Sinks come first.  With `unit` 1 a cascade of sinks and windows (or of everything)
    moves token by token; all others change where a unit of that many tokens ends, and until then the unit's own entries
    wait in a tail, in front of the first segment.  `blind` lists pairs (kind of the query, kind of the key) that do not
    see each other; `apart` counts the positions of what is written (answers) apart from those of what is read, from
    `gap` on, or with `overlap` from the position that reading had reached when writing began.
    """

    segments: tuple[Part, ...]
    positions: str = "stream"
    unit: int = 1
    blind: tuple[tuple[int, int], ...] = ()
    apart: bool = False
    gap: int = 0
    overlap: bool = False

    def __post_init__(self) -> None:
        if self.positions not in POLICIES:
            raise CompositionError(f"unknown positions {self.positions!r}: choose one of {', '.join(POLICIES)}.")
        if not self.segments:
            raise CompositionError("a cascade needs a segment: start with Window(size) or Everything().")
        if self.unit < 1:
            raise CompositionError(f"a unit of {self.unit} tokens is not possible: give at least 1.")
        if any(isinstance(s, Sinks) for s in self.segments[1:]):
            raise CompositionError("sinks keep the first entries of the stream: put Sinks first in the cascade.")
        if any(isinstance(s, Everything) for s in self.segments[:-1]):
            raise CompositionError("Everything() gives nothing up: nothing can come after it.")
        if all(isinstance(s, Sinks) for s in self.segments) and self.unit == 1:
            raise CompositionError("sinks alone cannot see the newest entry: add Window(size) after them.")
        for segment in self.segments:
            if self.unit % segment.aligned:
                raise CompositionError(
                    f"{type(segment).__name__} takes its entries in pieces of {segment.aligned}: "
                    f"make the unit ({self.unit}) a multiple."
                )

    @property
    def is_simple(self) -> bool:
        """Whether indices alone decide everything, token by token: what the ring runs."""
        plain = all(isinstance(s, (Sinks, Window)) for s in self.segments) or self.segments == (Everything(),)
        return plain and self.unit == 1 and not self.blind and not self.apart

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
        return all(s.entries is not None for s in self.segments)

    @property
    def entries(self) -> int | None:
        """How many entries a query may read, itself included; None when that grows."""
        sizes = [s.entries for s in self.segments]
        tail = 0 if self.is_simple else self.unit
        return tail + sum(n for n in sizes if n is not None) if self.is_bounded else None

    @property
    def tiers(self) -> tuple[Any, ...]:
        """Limits of main memory and disk that segments ask for."""
        return tuple(t for s in self.segments if (t := getattr(s, "tiers", None)) is not None)

    def limited_to(self, window: int) -> Cascade:
        """What a layer with a sliding window of its own keeps: its newest min(window, entries) entries."""
        size = window if self.entries is None else min(window, self.entries)
        return Cascade((Window(size),), "stream")


@dataclass(frozen=True)
class Heads:
    """Placement by head: each branch is a group of key-value heads (indices within the layer) and its cascade."""

    branches: tuple[tuple[tuple[int, ...], Cascade], ...]

    def __post_init__(self) -> None:
        if not self.branches or any(not heads for heads, _ in self.branches):
            raise CompositionError("a placement by head needs at least one head in each branch: leave empty ones out.")
        heads = [head for heads, _ in self.branches for head in heads]
        if len(set(heads)) != len(heads):
            raise CompositionError(f"a key-value head belongs to one branch only, got {sorted(heads)}: name each once.")

    is_simple: ClassVar[bool] = False
    sinks: ClassVar[int] = 0
    windows: ClassVar[tuple[int, ...]] = ()

    @property
    def is_bounded(self) -> bool:
        return all(c.is_bounded for _, c in self.branches)

    @property
    def entries(self) -> int | None:
        """The most entries that a query of any head may read."""
        return max(c.entries or 0 for _, c in self.branches) if self.is_bounded else None

    @property
    def tiers(self) -> tuple[Any, ...]:
        """As Cascade.tiers."""
        return tuple(t for _, c in self.branches for t in c.tiers)

    def limited_to(self, window: int) -> Cascade:
        """As Cascade.limited_to: a layer with a window of its own keeps that window in all heads."""
        size = window if self.entries is None else min(window, self.entries)
        return Cascade((Window(size),), "stream")


Placement = Cascade | Heads
