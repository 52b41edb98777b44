"""Which seconds of the stream a memory still holds: for honest answers about times that are gone or not yet there."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

MOST = 4096  # moments that are noted; beyond, every other one is forgotten, so times get coarser and never wrong


class View(Protocol):
    """Part of a memory, as `session.memory.view()` lists them."""

    @property
    def seen(self) -> Sequence[int]: ...


class Seconds:
    """Notes at which index of the stream each frame's tokens begin."""

    def __init__(self) -> None:
        self._at: deque[tuple[float, int]] = deque()  # (stream time, index of its first token), ascending
        self.first: float | None = None
        self.last: float | None = None

    def note(self, t: float, index: int) -> None:
        """A frame of second `t` whose tokens begin at `index`."""
        self.first = t if self.first is None else self.first
        self.last = t
        self._at.append((t, index))
        if len(self._at) > MOST:
            self._at = deque(item for i, item in enumerate(self._at) if i % 2 == 0)

    def still(self, t: float) -> None:
        """A frame of second `t` that looked as the one before it, whose tokens stand for it."""
        self.last = t

    def refusal(self, t: float, views: Sequence[View]) -> str | None:
        """Why nothing can be said about second `t`, if that is so; `views`: what the memory holds now."""
        if self.last is None:
            return "not seen: nothing has been seen yet."
        if t > self.last:
            return f"not seen yet: the stream is at {self.last:.1f} s, and the question is about {t:.1f} s."
        span = self._indices(t)
        if span is None or any(_meets(view.seen, span) for view in views):
            return None
        return f"no longer in memory: what was seen at {t:.1f} s has been dropped to stay within the budget."

    def _indices(self, t: float) -> range | None:
        """The indices of the moment at t: from its frame to the next one that was noted."""
        start: int | None = None
        for when, index in self._at:
            if when > t and start is not None:
                return range(start, max(index, start + 1))
            start = index
        return None  # the newest moment is always held


def _meets(held: Sequence[int], span: range) -> bool:
    if isinstance(held, range) and held.step == 1:
        return held.start < span.stop and span.start < held.stop
    return any(index in span for index in held)
