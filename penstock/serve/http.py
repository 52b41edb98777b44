"""Between HTTP and the rest: bodies with limits, answers as events, failures in OpenAI's shape."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response

from penstock.serve.access import Access, Caller
from penstock.serve.asked import Asked, Deliver, Finished
from penstock.serve.house import House
from penstock.serve.metrics import Metrics
from penstock.serve.refusal import Refusal, refusal_of, stopping
from penstock.serve.wire import whole_text

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]
log = logging.getLogger("penstock.serve")


@dataclass(frozen=True)
class Limits:
    """What one request, one session and all together may take."""

    body_bytes: int = 8 << 20  # of a JSON body
    header_seconds: float = 20.0  # in which the header of a request must have come
    body_seconds: float = 60.0  # in which a JSON body must have come
    pending_bytes: int = 4 << 20  # of a session; an append beyond waits
    event_bytes: int = 8 << 20  # of one message of a WebSocket
    lines: int = 1000  # WebSockets open at once
    answers: int = 64  # under way at once
    sessions: int = 10_000
    requests: int | None = None  # a minute, of a caller whose token has no rate of its own
    drain_seconds: float = 10.0


@dataclass
class Server:
    """What the endpoints share; `app.state.server`."""

    engine: Any
    model: Any
    house: House
    access: Access
    metrics: Metrics
    limits: Limits
    started: float = field(default_factory=time.time)
    answering: int = 0  # on the event loop only
    lines: int = 0  # Realtime connections, too
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(32, "penstock-serve"))

    async def blocking(self, work: Callable[[], T]) -> T:
        """Do what waits (for the disk, for a lock) in a thread; it is done to its end, whoever stops waiting."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self.threads, work))

    def take_seat(self) -> None:
        """Count one more answer under way, or refuse it; who takes a seat counts `answering` down again."""
        if self.house.is_draining:
            raise stopping()
        if self.answering >= self.limits.answers:
            raise Refusal(
                f"{self.limits.answers} answers are under way: try again soon.", 429, code="busy", retry_after=1
            )
        self.answering += 1

    def begin_drain(self) -> None:
        """On the event loop: nothing new is begun, what has no end is ended."""
        self.house.begin_drain()
        self.draining.set()

    async def lines_closed(self) -> None:
        """Wait until the Realtime connections have said their last events, as long as a drain may take."""
        deadline = time.monotonic() + self.limits.drain_seconds
        while self.lines and time.monotonic() < deadline:
            await asyncio.sleep(0.02)


def server_of(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


def path_of(connection: HTTPConnection) -> str:
    """Its path, shortened.  Not of its `url`: a cache of the standard library keeps what is parsed, up to 16 MB."""
    path: str = connection.scope["path"]
    return path if len(path) <= 200 else f"{path[:200]}..."


def caller_of(request: Request) -> Caller:
    caller: Caller = request.scope["caller"]
    return caller


def refused(refusal: Refusal) -> Response:
    """The answer to a request that is not served."""
    headers = {} if refusal.retry_after is None else {"retry-after": str(max(1, round(refusal.retry_after)))}
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.status in (408, 413):
        headers["connection"] = "close"  # there is a body that nobody will read
    return JSONResponse(refusal.document(), refusal.status, headers)


def guarded(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose failures are answers."""

    async def guard(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.status == 500:
                log.error("%s %s failed", request.method, path_of(request), exc_info=error)
            return refused(refusal)

    guard.__name__ = getattr(endpoint, "__name__", "endpoint")
    return guard


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


async def json_body(request: Request) -> Any:
    """The JSON of a body that is neither too long nor too slow; {} if there is none."""
    limits = server_of(request).limits
    too_long = Refusal(f"the body is longer than {limits.body_bytes} bytes: send less.", 413, code="body_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.body_bytes:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                body += part
                if len(body) > limits.body_bytes:
                    raise too_long
    except TimeoutError:
        raise Refusal("the body did not come in time: send it at once.", 408, code="timeout") from None
    if not body:
        return {}
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        whole_text(bytes(body), value)
    except (ValueError, RecursionError):
        raise Refusal("the body is not JSON: send a JSON object in UTF-8.", code="invalid_json") from None
    return value


class Hearing:
    """Pieces of one answer as they come, then Finished; raises what ended it early.  Who makes one closes it."""

    def __init__(self, server: Server, start: Callable[[Deliver], Asked]) -> None:
        self._server, self._start, self._loop = server, start, asyncio.get_running_loop()
        self._ready: asyncio.Queue[str | Finished | BaseException] = asyncio.Queue()
        self._asked: Asked | None = None
        self._is_closed = self._is_over = False
        self._before, self._is_first = time.perf_counter(), True

    def _deliver(self, event: str | Finished | BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._ready.put_nowait, event)

    async def begin(self) -> None:
        """Ask; a refusal is raised here.  Who stops waiting and closes ends the answer all the same."""

        def work() -> None:
            self._asked = self._start(self._deliver)
            if self._is_closed:
                self._asked.cancel()

        await self._server.blocking(work)

    def __aiter__(self) -> Hearing:
        return self

    async def __anext__(self) -> str | Finished:
        if self._is_over:
            raise StopAsyncIteration
        event, metrics = await self._ready.get(), self._server.metrics
        if isinstance(event, str):
            now = time.perf_counter()
            (metrics.first if self._is_first else metrics.between).observe(now - self._before)
            self._before, self._is_first = now, False
            return event
        self._is_over = True
        if isinstance(event, BaseException):
            metrics.answers.labels("error").inc()
            raise event
        metrics.answers.labels(event.reason).inc()
        metrics.tokens.labels("question").inc(event.question_tokens)
        metrics.tokens.labels("answer").inc(event.tokens)
        return event

    def end(self) -> None:
        """End the answer where it is; what it said so far and Finished still come."""
        if self._asked is not None:
            self._asked.end()

    def close(self) -> None:
        """Let go of the answer."""
        self._is_closed = True
        if self._asked is not None:
            self._asked.cancel()


async def events(server: Server, start: Callable[[Deliver], Asked]) -> AsyncGenerator[str | Finished, None]:
    """What a Hearing says; closing it lets go of the answer."""
    hearing = Hearing(server, start)
    try:
        await hearing.begin()
        async for event in hearing:
            yield event
    finally:
        hearing.close()


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for something as long as the client does; its body must have been read."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
