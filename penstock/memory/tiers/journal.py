"""What the tiers of a pool share: names, serial numbers, the index, and the events for whoever listens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from penstock.memory.tiers.index import Index


@dataclass(frozen=True)
class TierEvent:
    """Something that blocks of a store have suffered.

    kind     dropped: the limit of the last tier; lost: damage on the disk; late: not read in time, still there;
             unwritten: the disk took no blocks, they stay in RAM for now; undurable: acknowledged, but only in RAM;
             index: the index took no entries, what is written from now on cannot be recovered
    label    of the store they were appended to ("" if it concerns all)
    blocks   their ids
    reason   in words
    """

    kind: str
    label: str
    blocks: tuple[int, ...]
    reason: str


class Home(NamedTuple):
    """A line of stores: one that was opened, or one fork."""

    label: str
    number: int | None  # in the index; None for a fork, which ends with the process


@dataclass
class Journal:
    """Shared by all tiers of a pool; used under its lock."""

    session: str
    generation: int
    on_event: Callable[[TierEvent], None] | None = None
    index: Index | None = None
    homes: list[Home] = field(default_factory=list)
    _serial: int = 0
    _index_failed: bool = False  # at the last commit
    _events: deque[TierEvent] = field(default_factory=lambda: deque(maxlen=4096))

    def serial(self, at_least: int = 0) -> int:
        """The next number of a count that never repeats in this folder."""
        self._serial = max(self._serial + 1, at_least)
        return self._serial

    def home(self, label: str, number: int | None = None) -> int:
        """Enter a line of stores."""
        self.homes.append(Home(label, number))
        return len(self.homes) - 1

    def report(self, kind: str, blocks: list[tuple[int, int]], reason: str) -> None:
        """Note an event per store; `blocks` are (home, id)."""
        for home in dict.fromkeys(home for home, _ in blocks):
            ids = tuple(index for which, index in blocks if which == home)
            self._events.append(TierEvent(kind, self.homes[home].label, ids, reason))

    def note(self, kind: str, reason: str) -> None:
        """Note an event that concerns no block in particular."""
        self._events.append(TierEvent(kind, "", (), reason))

    def commit(self) -> bool:
        """Make the index durable; True if it is."""
        if self.index is None:
            return False
        reason = self.index.commit()
        if reason is not None and not self._index_failed:
            self.note("index", reason)
        self._index_failed = reason is not None
        return reason is None

    def deliver(self) -> None:
        """Hand the events over.  Called by the callers of the pool, not under its lock and never by its thread."""
        while self._events:
            try:
                event = self._events.popleft()
            except IndexError:  # another thread was faster
                return
            if self.on_event is not None:
                self.on_event(event)
