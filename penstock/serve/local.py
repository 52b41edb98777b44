"""The plainest engine: every stream is a `Session` of its own, one thread gives them short turns, one after another.

It has the part of the engine's interface that the server uses, and its results are those of the session by definition.
No stream can starve another: a turn is at most one step of reading, or one token of an answer.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from penstock.core import Budget, Phase
from penstock.engine.records import Appended, Finish, Place, Status
from penstock.errors import PenstockError, UnknownName, UsageError
from penstock.models.load import Model
from penstock.models.sampling import Sampling
from penstock.reply import Feed, Turn, begin, opens_turn, turn_ids
from penstock.session import Session
from penstock.snapshot import resume

T = TypeVar("T")
_BYTES = 256  # of text read in one turn: about one step


class LocalAnswer:
    """One answer: an iterator of pieces of text."""

    def __init__(self, stream: LocalStream, question: str | None, raw: bool, sampling: Sampling) -> None:
        self._stream, self._sampling = stream, sampling
        self._pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self._run = self._steps(question, raw)
        self.is_cancelled = False
        self.finish: Finish | None = None
        self.tokens = 0  # of the answer so far; those that stay in the memory when it has ended
        self.question_tokens = 0

    def cancel(self) -> None:
        """End it with the next token."""
        self.is_cancelled = True

    def __iter__(self) -> Iterator[str]:
        while (piece := self._pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def advance(self) -> bool:
        """One turn, on the engine's thread; False when it is over."""
        try:
            next(self._run)
        except StopIteration:
            self._pieces.put(None)
            return False
        except BaseException as error:
            self.fail(error)
            raise
        return True

    def fail(self, error: BaseException) -> None:
        """End it with an error."""
        self.finish = self.finish or Finish.ERROR
        self._pieces.put(error)

    def _steps(self, question: str | None, raw: bool) -> Iterator[None]:
        session = self._stream.session
        before = session.tokens
        turn = Turn(session, self._sampling)
        session._replying = True
        try:
            has_turn = opens_turn(session, question, raw)
            for i, ids in enumerate(turn_ids(session, question, raw, session._in_answer)):
                if i == 1 and has_turn:
                    session.turn_opens()
                session.ingest(ids, Phase.ASK)
            begin(session, has_turn)
            self.question_tokens = session.tokens - before
            yield None
            for item in turn.run():
                if isinstance(item, Feed):
                    session.decode(item.token)
                    yield None
                else:
                    self.tokens = len(turn.tokens)
                    self._pieces.put(item)
                    yield None
                if self.is_cancelled:
                    break
        finally:
            try:
                for feed in turn.settle():
                    session.decode(feed.token)
            finally:
                session._replying = False
        self.tokens = session.tokens - before - self.question_tokens
        is_full = len(turn.tokens) == self._sampling.max_new and turn.stops.matched is None
        self.finish = Finish.CANCELLED if self.is_cancelled else Finish.LENGTH if is_full else Finish.STOP


class LocalStream:
    """One stream; every method may be called from any thread."""

    def __init__(self, engine: LocalEngine, id: str, session: Session) -> None:
        self.engine, self.id, self.session = engine, id, session
        self.queue: deque[tuple[float, bytes | list[int] | LocalAnswer]] = deque()
        self.failure: BaseException | None = None

    def append(self, data: str | bytes | Sequence[int]) -> Appended:
        """Queue text or token ids; returns at once."""
        item = data.encode("utf-8", "replace") if isinstance(data, str) else data
        item = item if isinstance(item, bytes) else list(item)
        with self.engine.changed:
            self._check()
            if item:
                self.queue.append((time.monotonic(), item))
                self.engine.changed.notify()
        return Appended(len(item), 0, self._pending, 0.0, False, 0)

    def ask(
        self, question: str | None = None, *, raw: bool = False, max_new: int = 128, temperature: float = 0.0,
        top_k: int = 0, top_p: float = 1.0, stop: Sequence[str] = (), seed: int = 0,
    ) -> LocalAnswer:  # fmt: skip
        """Queue a question behind all that was appended before it."""
        answer = LocalAnswer(self, question, raw, Sampling(max_new, temperature, top_k, top_p, tuple(stop), seed))
        with self.engine.changed:
            self._check()
            self.queue.append((time.monotonic(), answer))
            self.engine.changed.notify()
        return answer

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.engine.streams.get(self.id) is not self:
            raise UsageError(f"the session {self.id} is closed: open another one.")

    def turn(self) -> None:
        """One step, on the engine's thread."""
        at, item = self.queue[0]
        if isinstance(item, LocalAnswer):
            if not item.advance():
                self.queue.popleft()
            return
        size = _BYTES if isinstance(item, bytes) else self.session.chunk
        if isinstance(item, bytes):
            self.session.feed(item[:size])
        else:
            if self.session.encoder is not None and self.session.tokens == 0:  # ids bring their own beginning
                state = self.session.encoder.state_dict()
                self.session.encoder.load_state_dict({**state, "started": True, "has_text": True})
            self.session.ingest(item[:size])
        if item[size:]:
            self.queue[0] = (at, item[size:])
        else:
            self.queue.popleft()

    def fail(self, error: BaseException) -> None:
        """A step failed: what waits is given up."""
        self.failure = error
        while self.queue:
            item = self.queue.popleft()[1]
            if isinstance(item, LocalAnswer):
                item.fail(error)

    @property
    def _pending(self) -> int:
        held = self.session.encoder.pending if self.session.encoder is not None else 0
        return held + sum(len(item) for _, item in list(self.queue) if isinstance(item, bytes))

    @property
    def _answering(self) -> int:
        return sum(isinstance(item, LocalAnswer) for _, item in list(self.queue))

    def fork(self, id: str | None = None) -> LocalStream:
        """A stream with the same past and the same input pending."""

        def branch() -> LocalStream:
            self._check_settled()
            other = self.engine.adopt(id, self.session.fork())
            other.queue.extend(self.queue)
            return other

        return self.engine.between(branch)

    def truncate(self, tokens: int) -> None:
        """Keep the first `tokens`; refused while input is pending."""

        def cut() -> None:
            self._check_settled()
            if self.queue:
                raise UsageError("input is still pending: wait until it is read, then truncate.")
            self.session.truncate(tokens)

        self.engine.between(cut)

    def save(self, path: Path) -> None:
        """The session in one file; refused while input is pending."""

        def write() -> None:
            self._check_settled()
            if self.queue:
                raise UsageError("input is still pending: wait until it is read, then save.")
            self.session.save(path)

        self.engine.between(write)

    def _check_settled(self) -> None:
        self._check()
        if self._answering:
            raise UsageError("this session is answering: read the answer to its end or cancel it first.")

    def drained(self, timeout: float | None = None) -> bool:
        """Wait until the queue is empty; True if so."""
        with self.engine.changed:
            return self.engine.changed.wait_for(lambda: not self.queue or self.engine.is_stopped, timeout)

    def close(self) -> None:
        """Give everything up; a second close does nothing."""
        with self.engine.changed:
            self.engine.streams.pop(self.id, None)
        self.engine.between(lambda: self.fail(UsageError(f"the session {self.id} was closed: open another one.")))

    def status(self) -> Status:
        """This moment."""
        session, waiting = self.session, list(self.queue)
        oldest = next((at for at, item in waiting if not isinstance(item, LocalAnswer)), None)
        return Status(
            self.id, session.tokens, session.tokens, self._pending, session.memory.nbytes,
            0.0 if oldest is None else (time.monotonic() - oldest) * 1e3, session.meter.nll_mean,
            Place.DEVICE if session.tokens else Place.NEW, self._answering,
        )  # fmt: skip


class LocalEngine:
    """Streams on one model, and the thread that serves them."""

    def __init__(
        self, model: Model, memory: str = "streaming-llm", budget: Budget | int | str | None = None, *,
        chunk: int = 64, path: str = "eager",
    ) -> None:  # fmt: skip
        self.model, self.memory, self.budget = model, memory, budget
        self._options: dict[str, Any] = {"chunk": chunk, "path": path}
        self.changed = threading.Condition(threading.RLock())
        self.streams: dict[str, LocalStream] = {}
        self.is_stopped = False
        self._urgent: deque[Callable[[], None]] = deque()
        self._made = 0
        self._began: float | None = None  # when the step under way began
        self._thread = threading.Thread(target=self._work, name="penstock-engine", daemon=True)
        Session(model, memory, budget, **self._options)  # refuses here what no stream could be opened with

    def run(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End with the step under way."""
        with self.changed:
            self.is_stopped = True
            self.changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_running(self) -> bool:
        """Whether the thread serves."""
        return self._thread.is_alive() and not self.is_stopped

    @property
    def stuck_seconds(self) -> float:
        """How long the step under way has taken; 0 when there is none."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def open(self, id: str | None = None) -> LocalStream:
        """A new stream."""
        return self.adopt(id, Session(self.model, self.memory, self.budget, **self._options))

    def resume(self, path: Path, id: str | None = None) -> LocalStream:
        """A stream from a snapshot."""
        options: dict[str, Any] = {"chunk": self._options["chunk"], "run_path": self._options["path"]}
        return self.adopt(id, resume(path, self.model, memory=self.memory, **options))

    def adopt(self, id: str | None, session: Session) -> LocalStream:
        """A session becomes a stream."""
        with self.changed:
            self._made += 1
            name = id or f"stream-{self._made}"
            if name in self.streams:
                raise UsageError(f"there is a session {name} already: choose another id.")
            self.streams[name] = LocalStream(self, name, session)
            return self.streams[name]

    def __getitem__(self, id: str) -> LocalStream:
        if id not in self.streams:
            raise UnknownName("session", id, self.streams)
        return self.streams[id]

    def between(self, work: Callable[[], T]) -> T:
        """Do it between two steps, on the engine's thread; returns what it returns."""
        if self.is_stopped or not self._thread.is_alive() or threading.current_thread() is self._thread:
            return work()
        done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                done.put((work(), None))
            except BaseException as error:
                done.put((None, error))

        with self.changed:
            self._urgent.append(run)
            self.changed.notify()
        result, error = done.get()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def _work(self) -> None:
        while True:
            with self.changed:
                ready = [stream for stream in self.streams.values() if stream.queue]
                while not ready and not self._urgent and not self.is_stopped:
                    self.changed.wait()
                    ready = [stream for stream in self.streams.values() if stream.queue]
            if self.is_stopped and not self._urgent:
                break
            while self._urgent:
                self._urgent.popleft()()
            for stream in ready:
                if stream.queue and not self.is_stopped:
                    self._turn(stream)
                while self._urgent:
                    self._urgent.popleft()()
        for stream in self.streams.values():
            stream.fail(PenstockError("the server is stopping: try again when it is back."))

    def _turn(self, stream: LocalStream) -> None:
        self._began = time.monotonic()
        try:
            stream.turn()
        except Exception as error:
            stream.fail(error)
        finally:
            self._began = None
            if not stream.queue:
                with self.changed:
                    self.changed.notify_all()
