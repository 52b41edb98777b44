"""Times of frames that never go back, whatever a file or a camera says; and which of them a rate keeps.  Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

_LEAP = 3600.0  # seconds: a longer step forward is a broken or wrapped timestamp
_EPS = 1e-6  # seconds


@dataclass
class Times:
    """Turns the times a container gives (seconds, or None) into stream times that begin near 0.

    A missing time is one period after the last frame.  A step back, or one forward of more than an hour, moves the
    origin so that the stream goes on one period later.
    """

    period: float = 1 / 25  # seconds between frames, where nothing better is known
    origin: float | None = None  # the container's time of stream time 0; the first frame's if not given
    last: float | None = None
    repaired: int = 0  # frames whose time was missing or impossible
    resume_at: float | None = None  # where the first frame after a reconnection stands

    def next(self, time: float | None) -> float:
        """The stream time of the next frame."""
        after = 0.0 if self.last is None else self.last + self.period
        if self.resume_at is not None:
            after, self.resume_at = self.resume_at, None
            self.origin, self.last = None if time is None else time - after, after
            return after
        if time is None or not math.isfinite(time):
            self.repaired += 1
            t = after
        else:
            if self.origin is None or (self.last is None and not -_EPS <= time - self.origin <= _LEAP):
                self.origin = time
            t = time - self.origin
            if self.last is not None and not self.last - _EPS <= t <= self.last + _LEAP:
                self.repaired += 1
                self.origin = time - after
                t = after
        self.last = max(t, 0.0 if self.last is None else self.last)
        return self.last

    def restart(self, later: float) -> None:
        """The source was opened anew: its next frame stands at `later` seconds of stream time, or after the last."""
        self.resume_at = later if self.last is None else max(later, self.last + self.period)


@dataclass
class Grid:
    """Keeps the first frame of every 1/rate seconds; None keeps all.  What it keeps depends on times alone."""

    rate: float | None = None  # frames per second
    cell: int = -1  # the newest that has a frame

    def keeps(self, t: float) -> bool:
        """Whether to keep the frame of stream time `t`; times do not go back."""
        if self.rate is None:
            return True
        cell = math.floor(t * self.rate + _EPS)
        if cell <= self.cell:
            return False
        self.cell = cell
        return True
