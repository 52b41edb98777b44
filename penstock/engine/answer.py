"""One answer as its reader sees it: pieces of text that arrive while the engine runs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from penstock.engine.cadence import Cadence
from penstock.engine.records import Finish
from penstock.errors import MemoryStateError


class Driver(Protocol):
    """What an answer needs of the engine."""

    @property
    def is_running(self) -> bool: ...

    def step(self) -> object: ...

    def cancel(self, answer: Answer) -> None: ...


def _wake(loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
        loop.call_soon_threadsafe(news.set)


class Answer:
    """An iterator and an asynchronous iterator of pieces of text, for one reader."""

    def __init__(self, engine: Driver, cadence: Cadence, asked: float, deadline: float) -> None:
        self.cadence = cadence  # where its pieces and its end are counted
        self.asked, self.deadline = asked, deadline  # seconds on the engine's clock
        self.finish: Finish | None = None
        self.tokens = 0  # chosen by the model so far
        self.question_tokens = 0
        self.said: tuple[int, ...] = ()  # token ids that the stream keeps of it, once it has ended
        self.is_cancelled = False
        self._engine = engine
        self._pieces: deque[str] = deque()
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._waiters: list[Callable[[], None]] = []

    # -- the engine's side --------------------------------------------------------------------------------------

    def put(self, piece: str) -> None:
        """One more piece of text."""
        with self._changed:
            self._pieces.append(piece)
            self._tell()

    def end(self, finish: Finish, now: float, error: BaseException | None = None) -> None:
        """No more pieces; the first end counts.  If it has not begun, its question stays in the stream, unanswered."""
        with self._changed:
            if self.finish is None:
                self.finish, self._error = finish, error
                self.cadence.end(self.deadline, finish, now)
            self._tell()

    def _tell(self) -> None:
        self._changed.notify_all()
        for wake in self._waiters:
            wake()
        self._waiters.clear()

    # -- the reader's side --------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """End it here: the memory keeps exactly the tokens of which text was put out."""
        self._engine.cancel(self)

    def text(self) -> str:
        """The rest of the answer, when it has ended."""
        return "".join(self)

    def __iter__(self) -> Answer:
        return self

    def __next__(self) -> str:
        while True:
            with self._changed:
                found = self._take()
                if found is not None:
                    return found
                if self.finish is not None:
                    raise StopIteration
                if self._engine.is_running:
                    self._changed.wait(1.0)
                    continue
            if not self._engine.step():
                self._stuck()

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> str:
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                found = self._take()
                if found is not None:
                    return found
                if self.finish is not None:
                    raise StopAsyncIteration
                news = asyncio.Event()
                self._waiters.append(partial(_wake, loop, news))
            if self._engine.is_running:
                await news.wait()
            elif not await asyncio.to_thread(self._engine.step):
                self._stuck()

    def _take(self) -> str | None:
        """The next piece; raises what ended the answer, once its pieces are read."""
        if self._pieces:
            return self._pieces.popleft()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return None

    def _stuck(self) -> None:
        with self._changed:
            if self.finish is None and not self._pieces and not self._engine.is_running:
                raise MemoryStateError(
                    "the engine has nothing it can do for this answer: other sessions hold its rows."
                )
