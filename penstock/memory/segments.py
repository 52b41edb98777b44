"""Segments as values: what a cascade is made of.

A segment here is a declaration (what it keeps, in what order entries leave); `ring.py` runs it fast, `naive.py` runs it
literally.  New entries enter the first segment that wants them; what one gives up enters the next, what the last gives
up is gone.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import BudgetError


@dataclass(frozen=True)
class Sinks:
    """The first `size` entries of the stream, for ever."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise BudgetError(f"sinks must be 0 or more, got {self.size}: give the number of first tokens to keep.")


@dataclass(frozen=True)
class Window:
    """The newest `size` entries that reach it; the oldest leaves first."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise BudgetError(f"a window must keep at least 1 entry, got {self.size}: raise the budget.")


@dataclass(frozen=True)
class Everything:
    """Every entry: grows with the stream.  The reference that bounded memories are compared with."""


Segment = Sinks | Window | Everything
