"""One pass over a video: every question is asked when its second has come, and nothing later was seen.

frames  0.0  0.5  1.0 | 1.5 ...        a question at 1.2 is asked here, on a fork that is then thrown away
                      ^
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

from bench.video_tasks.exam import Ask, Exchange, Test
from bench.video_tasks.streamingbench import Proactive
from penstock.core import Frame


class LookAhead(AssertionError):
    """A question would have been answered by a model that saw later frames."""


class Watcher(Protocol):
    """A model that watches."""

    def see(self, frame: Frame) -> None:
        """The next frame."""

    def answer(self, ask: Ask) -> str:
        """The reply; nothing of it stays, unless the ask belongs to a conversation (`history`)."""


@runtime_checkable
class Listener(Protocol):
    """A watcher whose model speaks up by itself: a request stands from its second on, on a fork of its own."""

    def stand(self, number: int, request: str) -> bool:
        """Put the request of a test; False: ask it like any other."""

    def said(self, number: int) -> str:
        """What was said since this was asked last."""

    def end(self, number: int) -> None:
        """The request is over."""


class Pass:
    """One video, its tests, one watcher."""

    def __init__(
        self, watcher: Watcher, tests: Sequence[Test], done: Callable[[int], None] = lambda index: None
    ) -> None:
        self.exchanges: list[list[Exchange]] = [[] for _ in tests]
        self.seen = float("-inf")  # time of the newest frame
        self._watcher, self._done = watcher, done
        self._listener = watcher if isinstance(watcher, Listener) else None
        self._scripts = [test.script() for test in tests]
        self._agenda: list[tuple[float, int, int, Ask]] = []
        self._order = 0
        self._standing: dict[int, str] = {}  # of tests whose request stands: what was said last
        for index, (test, script) in enumerate(zip(tests, self._scripts)):
            if self._listener is not None and isinstance(test, Proactive):
                self._plan(index, Ask(test.at, test.request, test.request, stands=True))
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
        if ask.stands:
            if self._listener is not None and self._listener.stand(index, ask.plain):
                self._standing[index] = ""
            return
        reply = self._reply(index, ask)
        self.exchanges[index].append(Exchange(at, reply))
        try:
            following = self._scripts[index].send(reply)
        except StopIteration:
            following = None
        if following is None:
            if self._listener is not None and self._standing.pop(index, None) is not None:
                self._listener.end(index)
            self._done(index)
        self._plan(index, following)

    def _reply(self, index: int, ask: Ask) -> str:
        if self._listener is None or index not in self._standing:
            return self._watcher.answer(ask)
        if ask.polls:
            self._standing[index] = self._listener.said(index)
            return "yes" if self._standing[index] else "no"
        return self._standing[index]

    def _plan(self, index: int, ask: Ask | None) -> None:
        if ask is not None:
            self._order += 1
            heapq.heappush(self._agenda, (ask.at, self._order, index, ask))
