"""The client for asyncio; cancelling a task that reads an answer ends the answer at the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self, Unpack

from penstock.client.calls import (
    Asking,
    Call,
    Heard,
    ask_call,
    create_call,
    document_of,
    encoded,
    fork_call,
    parts_of,
    path_of,
    pause,
    pieces,
    where,
)
from penstock.client.failures import BrokenOff, refused
from penstock.client.records import Appended, SessionInfo
from penstock.client.transport import failed, library, settings
from penstock.errors import PenstockError


class AsyncAnswer(Heard):
    """An asynchronous iterator of pieces of text.  Leaving it, or `cancel`, ends the answer at the server."""

    def __init__(self, client: AsyncClient, response: Any) -> None:
        super().__init__()
        self._client, self._response = client, response
        self._pieces = self._read()
        self._waiting: asyncio.Future[str] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if self._is_cancelled:  # perhaps while a piece was on its way out: then nobody has let go of the connection yet
            await self._let_go()
            raise StopAsyncIteration
        waiting = self._waiting = asyncio.ensure_future(anext(self._pieces))
        try:
            return await waiting
        except asyncio.CancelledError:
            ours = self._is_cancelled
            if not ours:
                self._is_cancelled = not self._reader.is_over
            await asyncio.shield(self._let_go())
            if ours:
                raise StopAsyncIteration from None
            raise
        finally:
            self._waiting = None

    async def _read(self) -> AsyncIterator[str]:
        try:
            async for data in self._response.aiter_bytes():
                for piece in self._reader.feed(data):
                    yield piece
                if self._reader.is_over:
                    return
        except library().HTTPError as error:
            raise failed(error, self._client.at)[0] from None
        finally:
            await self._response.aclose()
        raise BrokenOff("the answer ended in the middle: see whether the server still runs.")

    async def _let_go(self) -> None:
        await self._pieces.aclose()  # type: ignore[attr-defined]
        await self._response.aclose()

    async def text(self) -> str:
        """All of the rest, when it is over."""
        return "".join([piece async for piece in self])

    async def cancel(self) -> None:
        """End it where it is, also while another task reads it: the stream keeps what was put out."""
        if self._reader.is_over or self._is_cancelled:
            return
        self._is_cancelled = True
        if self._waiting is not None:
            self._waiting.cancel()
        else:
            await self._let_go()

    async def aclose(self) -> None:
        """The same, and the connection is let go of."""
        await self.cancel()
        if self._waiting is None:
            await self._let_go()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:  # fmt: skip
        await self.aclose()


class AsyncClientSession:
    """One endless stream of a server."""

    def __init__(self, client: AsyncClient, id: str) -> None:
        self._client, self.id = client, id

    def __repr__(self) -> str:
        return f"<session {self.id} at {self._client.at.url}>"

    async def info(self) -> SessionInfo:
        """How it is now."""
        return SessionInfo.of(await self._client._json(Call("GET", path_of(self.id), is_safe=True)))

    async def append(self, data: str | bytes | Iterable[str | bytes] | AsyncIterable[str | bytes]) -> Appended:
        """More of the stream, of any length; returns when the server has it on its disk."""
        path = path_of(self.id, "/append")
        if isinstance(data, (str, bytes, bytearray, memoryview)):
            return Appended.of(await self._client._json(Call("POST", path), encoded(data)))
        return Appended.of(await self._client._json(Call("POST", path), _upload(data), retries=0))

    async def ask(self, question: str | None = None, **how: Unpack[Asking]) -> AsyncAnswer:
        """A question behind all that was appended; returns when the answer begins.  None: the model goes on."""
        return await self._client._answer(ask_call(self.id, question, how))

    async def fork(self, id: str | None = None) -> AsyncClientSession:
        """A second session with the same past."""
        return AsyncClientSession(self._client, (await self._client._json(fork_call(self.id, id)))["id"])

    async def truncate(self, tokens: int) -> SessionInfo:
        """Keep the first `tokens`, exactly; raises NotRewindable when what that needs was evicted."""
        return SessionInfo.of(await self._client._json(Call("POST", path_of(self.id, "/truncate"), {"tokens": tokens})))

    async def save(self) -> int:
        """Write a snapshot at the server; returns its bytes."""
        return int((await self._client._json(Call("POST", path_of(self.id, "/save"), {}, is_safe=True)))["bytes"])

    async def delete(self) -> None:
        """End it for good."""
        await self._client._json(Call("DELETE", path_of(self.id)))


async def _upload(data: Iterable[str | bytes] | AsyncIterable[str | bytes]) -> AsyncIterator[bytes]:
    if isinstance(data, AsyncIterable):
        async for part in data:
            for piece in pieces(part):
                yield piece
    else:
        for piece in parts_of(data):
            yield piece


class AsyncSessions:
    """The sessions of a server that belong to this client's token."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(self, id: str | None = None) -> AsyncClientSession:
        """A new session; without an id the server chooses one."""
        return AsyncClientSession(self._client, (await self._client._json(create_call(id)))["id"])

    async def get(self, id: str) -> AsyncClientSession:
        """A session that exists; UsageError if not."""
        await self._client._json(Call("GET", path_of(id), is_safe=True))
        return AsyncClientSession(self._client, id)

    async def list(self) -> list[SessionInfo]:
        """All of them, oldest first."""
        found = (await self._client._json(Call("GET", "/v1/sessions", is_safe=True)))["data"]
        return [SessionInfo.of(document) for document in found]


class AsyncClient:
    """A client of `penstock serve` for one event loop; the arguments are those of `Client`."""

    def __init__(
        self, url: str | None = None, *, token: str | None = None, timeout: float = 60.0, retries: int = 2,
        transport: Any = None,
    ) -> None:  # fmt: skip
        self.at = where(url, token)
        self.retries = retries
        self._http = library().AsyncClient(**settings(self.at, timeout, transport))
        self.sessions = AsyncSessions(self)

    async def health(self) -> dict[str, Any]:
        """What the server says of itself; also when it calls itself ill."""
        return await self._json(Call("GET", "/health", is_safe=True), accepts=(503,))

    async def model(self) -> str:
        """The name of the model that it serves."""
        return str((await self._json(Call("GET", "/v1/models", is_safe=True)))["data"][0]["id"])

    async def aclose(self) -> None:
        """Let go of all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:  # fmt: skip
        await self.aclose()

    async def _json(
        self, call: Call, content: Any = None, retries: int | None = None, accepts: tuple[int, ...] = ()
    ) -> dict[str, Any]:  # fmt: skip
        return document_of(await self._sent(call, content, self.retries if retries is None else retries, accepts))

    async def _answer(self, call: Call) -> AsyncAnswer:
        return AsyncAnswer(self, await self._sent(call, None, self.retries, (), is_stream=True))

    async def _sent(
        self, call: Call, content: Any, retries: int, accepts: tuple[int, ...], is_stream: bool = False
    ) -> Any:  # fmt: skip
        httpx, tried = library(), 0
        waits = httpx.Timeout(None, connect=10.0) if is_stream or content is not None else httpx.USE_CLIENT_DEFAULT
        while True:
            failure: PenstockError
            try:
                request = self._http.build_request(
                    call.method, call.path, json=call.body, content=content, timeout=waits
                )
                response = await self._http.send(request, stream=True)
                try:
                    if response.status_code < 400 or response.status_code in accepts:
                        if not is_stream:
                            await response.aread()
                        return response
                    body = await response.aread()
                    failure = refused(response.status_code, body, response.headers.get("retry-after"))
                except BaseException:
                    await response.aclose()
                    raise
                was_sent = False
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                failure, was_sent = failed(error, self.at)
            wait = pause(tried, retries, failure, call, was_sent)
            tried += 1
            await asyncio.sleep(wait)
