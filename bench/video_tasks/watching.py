"""One pass over a video: every question is asked when its second has come, and nothing later was seen.

frames  0.0  0.5  1.0 | 1.5 ...        a question at 1.2 is asked here, on a fork that is then thrown away
                      ^
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from bench.video_tasks.exam import Ask, Exchange, Test
from penstock.core import Frame


class LookAhead(AssertionError):
    """A question would have been answered by a model that saw later frames."""


class Watcher(Protocol):
    """A model that watches."""

    def see(self, frame: Frame) -> None:
        """The next frame."""

    def answer(self, ask: Ask) -> str:
        """The reply; nothing of it stays, unless the ask belongs to a conversation (`history`)."""


class Pass:
    """One video, its tests, one watcher."""

    def __init__(
        self, watcher: Watcher, tests: Sequence[Test], done: Callable[[int], None] = lambda index: None
    ) -> None:
        self.exchanges: list[list[Exchange]] = [[] for _ in tests]
        self.seen = float("-inf")  # time of the newest frame
        self._watcher, self._done = watcher, done
        self._scripts = [test.script() for test in tests]
        self._agenda: list[tuple[float, int, int, Ask]] = []
        self._order = 0
        for index, script in enumerate(self._scripts):
            self._plan(index, next(script, None))

    def watch(self, frames: Iterable[Frame]) -> list[list[Exchange]]:
        """See all frames, or as many as the questions need; what is asked behind the last frame is asked at the end.

        Raises:
            LookAhead: a test asks about a time before what it has already been shown.
        """
        for frame in frames:
            while self._agenda and self._agenda[0][0] < frame.t:
                self._ask()
            if not self._agenda:
                return self.exchanges
            if frame.t < self.seen:
                raise LookAhead(f"a frame of second {frame.t} came behind one of second {self.seen}")
            self._watcher.see(frame)
            self.seen = frame.t
        while self._agenda:
            self._ask()
        return self.exchanges

    def _ask(self) -> None:
        at, _, index, ask = heapq.heappop(self._agenda)
        if self.seen > at:
            raise LookAhead(f"a question about second {at} was put when second {self.seen} had been seen")
        reply = self._watcher.answer(ask)
        self.exchanges[index].append(Exchange(at, reply))
        try:
            following = self._scripts[index].send(reply)
        except StopIteration:
            following = None
        if following is None:
            self._done(index)
        self._plan(index, following)

    def _plan(self, index: int, ask: Ask | None) -> None:
        if ask is not None:
            self._order += 1
            heapq.heappush(self._agenda, (ask.at, self._order, index, ask))
