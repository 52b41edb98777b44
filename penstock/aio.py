"""Sessions of this process for asyncio: the engine on its thread, and nothing that blocks the event loop.

    async with penstock.aio.open(model, "streaming-llm", 4096) as session:
        await session.append(text)
        async for piece in session.ask("What changed since noon?"):
            print(piece, end="", flush=True)

A task that is cancelled while it reads an answer ends the answer: the memory keeps exactly the tokens of which text was
put out.  Many sessions on one model: `async with penstock.aio.Host(model) as host: session = await host.open()`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from penstock.engine import Answer, Appended, Engine, EngineSession, Finish, Status

T = TypeVar("T")
_TEXT = (str, bytes, bytearray, memoryview)
_PENDING = 1 << 20  # bytes: append waits while a session has more than that to read


async def _in_thread(work: Callable[[], T]) -> T:
    """Done to its end in a thread, whoever stops waiting."""
    return await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(work)))


async def _parts(data: Any) -> AsyncIterator[Any]:
    """What is appended at once: a text, token ids, or each chunk of text."""
    if isinstance(data, AsyncIterable):
        async for part in data:
            yield part
    elif isinstance(data, _TEXT) or (isinstance(data, Sequence) and not any(isinstance(part, _TEXT) for part in data)):
        yield data
    else:
        for part in data:
            yield part


class AsyncReply:
    """An answer: an asynchronous iterator of pieces of text, for one reader.  It begins when it is made."""

    def __init__(self, begin: Callable[[], Answer]) -> None:
        self._begun = asyncio.ensure_future(asyncio.to_thread(begin))
        self._answer: Answer | None = None

    @property
    def finish(self) -> Finish | None:
        """Why it ended, else None."""
        return None if self._answer is None else self._answer.finish

    @property
    def tokens(self) -> int:
        """Tokens of the answer so far."""
        return 0 if self._answer is None else self._answer.tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        try:
            if self._answer is None:
                self._answer = await asyncio.shield(self._begun)
            return await anext(self._answer)
        except asyncio.CancelledError:
            await self.cancel()
            raise

    async def text(self) -> str:
        """The rest of the answer, when it has ended."""
        return "".join([piece async for piece in self])

    async def cancel(self) -> None:
        """End it where it is."""
        try:
            answer = await asyncio.shield(self._begun)
        except Exception:
            return  # it never began, which its reader is told
        self._answer = answer
        answer.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:  # fmt: skip
        await self.cancel()


class AsyncSession:
    """One stream of an engine.  Appends are taken in the order in which they are awaited."""

    def __init__(self, session: EngineSession) -> None:
        self.session = session
        self._order = asyncio.Lock()

    @property
    def id(self) -> str:
        return self.session.id

    async def append(
        self, data: str | bytes | Sequence[int] | Iterable[str | bytes] | AsyncIterable[str | bytes]
    ) -> Appended:  # fmt: skip
        """More of the stream: text, token ids, or chunks of text; waits while there is much to read already."""
        async with self._order:
            taken: Appended | None = None
            async for part in _parts(data):
                now = await self._put(part)
                if taken is not None:
                    now = replace(
                        now, bytes=taken.bytes + now.bytes, tokens=taken.tokens + now.tokens,
                        bytes_dropped=taken.bytes_dropped + now.bytes_dropped,
                    )  # fmt: skip
                taken = now
            return taken or await self._put("")

    async def _put(self, data: Any) -> Appended:
        while self.session.status().bytes_pending > _PENDING:
            await _in_thread(lambda: self.session.engine.wait_until(self._has_room, 1.0))
        return await _in_thread(lambda: self.session.append(data))

    def _has_room(self) -> bool:
        session = self.session
        return session.is_closed or session.error is not None or session.status().bytes_pending <= _PENDING

    def ask(self, question: str | None = None, **how: Any) -> AsyncReply:
        """A question behind all that was appended; `how` as for `EngineSession.ask`."""
        return AsyncReply(lambda: self.session.ask(question, **how))

    async def drained(self, timeout: float | None = None) -> bool:
        """Wait until everything is read and answered; False when time is over.  May be cancelled."""
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        while self.session.has_work:
            left = 0.25 if end is None else min(0.25, end - loop.time())
            if left <= 0:
                return False
            await _in_thread(lambda left=left: self.session.drained(left))  # type: ignore[misc]
        return True

    async def fork(self, id: str | None = None) -> AsyncSession:
        """A second session with the same past and the same input waiting."""
        return AsyncSession(await _in_thread(lambda: self.session.fork(id)))

    async def truncate(self, length: int) -> None:
        """Keep the first `length` tokens, exactly; raises NotRewindable if that is impossible."""
        await _in_thread(lambda: self.session.truncate(length))

    async def save(self, path: str | Path) -> None:
        """Write the session to one file."""
        await _in_thread(lambda: self.session.save(path))

    def status(self) -> Status:
        """Its counters at this moment."""
        return self.session.status()

    async def close(self) -> None:
        """Cancel its answers and give up its memory."""
        await _in_thread(self.session.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:  # fmt: skip
        await self.close()


class Host:
    """An engine for asyncio; the arguments are those of `Engine`."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._arguments, self._settings = arguments, settings
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The engine itself, inside the `async with` block."""
        assert self._engine is not None, "enter the host first: async with Host(...) as host"
        return self._engine

    async def __aenter__(self) -> Self:
        self._engine = await _in_thread(lambda: Engine(*self._arguments, **self._settings).run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:  # fmt: skip
        await _in_thread(self.engine.close)

    async def open(self, id: str | None = None, **settings: Any) -> AsyncSession:
        """A new session."""
        return AsyncSession(await _in_thread(lambda: self.engine.open(id, **settings)))

    async def resume(self, path: str | Path, id: str | None = None) -> AsyncSession:
        """A session from a snapshot of this model, memory and budget."""
        return AsyncSession(await _in_thread(lambda: self.engine.resume(path, id)))


@asynccontextmanager
async def open(
    model: Any = None, memory: str = "streaming-llm", budget: Any = None, **settings: Any
) -> AsyncIterator[AsyncSession]:  # fmt: skip
    """One session on an engine of its own, until the block ends."""
    async with Host(model, memory, budget, **{"rows": 1, **settings}) as host:
        yield await host.open()


__all__ = ["AsyncReply", "AsyncSession", "Host", "open"]
