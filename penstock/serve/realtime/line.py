"""One Realtime connection: the protocol between a WebSocket and a hosted session.

Two kinds of tasks run flows of the protocol, one flow at a time: the reader, one message after another, and one
speaker per response.  Events are sent in the order in which the protocol said them; while more than `_FULL` bytes wait
for a slow client nothing is read from it and no more text is taken from its answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections import deque
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from penstock.core import RealClock
from penstock.models.chat import turns
from penstock.serve.access import Caller
from penstock.serve.asked import Deliver, Finished
from penstock.serve.hosted import PATIENCE, Hosted
from penstock.serve.http import Hearing, Server, log, path_of
from penstock.serve.prompt import chat_tokens
from penstock.serve.realtime.outputs import Admit, Flow, Put, Release, Send, Speak, Stop
from penstock.serve.realtime.protocol import Facts, Protocol
from penstock.serve.realtime.script import ids_of
from penstock.serve.refusal import Refusal, refusal_of, stopping
from penstock.serve.replies import once
from penstock.serve.saying import rewrite, say
from penstock.serve.wire import CreateBody, Message, checked

_FULL = 1 << 20  # bytes of events that may wait
NORMAL, GOING_AWAY, DELETED, FAILED = 1000, 1001, 1008, 1011


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


class Line:
    """A connection that is open; `run` ends when either side does."""

    def __init__(self, websocket: WebSocket, server: Server, hosted: Hosted, caller: Caller) -> None:
        self.websocket, self.server, self.hosted, self.caller = websocket, server, hosted, caller
        model, tally = server.model, hosted.tally
        facts = Facts(
            hosted.id, model.name, server.engine.row_entries, turns(model.tokenizer), tally.said,
            tally.tokens + tally.held,
        )  # fmt: skip
        self.protocol = Protocol(facts, RealClock(), _new_id)
        self.address = websocket.client.host if websocket.client else ""
        self.hearings: dict[str, Hearing] = {}
        self.seats: set[str] = set()
        self._speakers: set[asyncio.Task[None]] = set()
        self._fresh: list[str] = []  # answers that have begun and whose events may not come yet
        self._turn = asyncio.Lock()  # one flow at a time
        self._waiting: deque[str] = deque()
        self._size = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def run(self) -> None:
        """Serve the connection."""
        loop, closed = asyncio.get_running_loop(), asyncio.Event()
        self.hosted.on_closed = lambda: loop.call_soon_threadsafe(closed.set)
        if self.hosted.is_closed:  # before anybody listened
            closed.set()
        draining: asyncio.Future[Any] = asyncio.ensure_future(self.server.draining.wait())
        deleted: asyncio.Future[Any] = asyncio.ensure_future(closed.wait())
        reader: asyncio.Future[Any] = asyncio.ensure_future(self._read())
        sender: asyncio.Future[Any] = asyncio.ensure_future(self._send())
        code = NORMAL
        try:
            await self._flow(self.protocol.begin())
            await asyncio.wait({reader, sender, draining, deleted}, return_when=asyncio.FIRST_COMPLETED)
            if draining.done() and not reader.done() and not sender.done():
                code = GOING_AWAY
                await self._farewell(reader, sender)
            for task in (reader, sender):
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    if not isinstance(error, (WebSocketDisconnect, OSError, RuntimeError, Refusal)):
                        log.error("a Realtime connection failed", exc_info=error)
                    code = FAILED
            if self.hosted.is_closed:
                code = DELETED
        finally:
            self.hosted.on_closed = lambda: None
            for task in (reader, sender, draining, deleted, *self._speakers):
                task.cancel()
            for hearing in self.hearings.values():
                hearing.close()
            self.server.answering -= len(self.seats)
            self.seats.clear()
            await asyncio.gather(reader, sender, draining, deleted, *self._speakers, return_exceptions=True)
        with contextlib.suppress(RuntimeError, WebSocketDisconnect, OSError):
            await self.websocket.close(code)

    async def _farewell(self, reader: asyncio.Future[None], sender: asyncio.Future[None]) -> None:
        """The server is stopping: answers end, their last events are sent, nothing more is read."""
        reader.cancel()
        for hearing in self.hearings.values():
            hearing.end()
        deadline = time.monotonic() + self.server.limits.drain_seconds
        while (self._speakers or self._waiting) and not sender.done() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    # -- events --------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while not self.hosted.is_closed:
            message = await self.websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            data = message.get("text")
            await self._flow(self.protocol.receive(message.get("bytes") or b"" if data is None else data))
            await self._room.wait()

    async def _send(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                text = self._waiting[0]
                await self.websocket.send_text(text)
                self._waiting.popleft()
                self._size -= len(text)
                if self._size < _FULL:
                    self._room.set()

    def _tell(self, event: dict[str, Any]) -> None:
        text = json.dumps(event, separators=(",", ":"))
        self._waiting.append(text)
        self._size += len(text)
        if self._size >= _FULL:
            self._room.clear()
        self._news.set()

    async def _flow(self, flow: Flow) -> None:
        """Run a flow to its end: send what it says, do what it asks and hand it the result."""
        async with self._turn:
            result: Any = None
            failure: Refusal | None = None
            try:
                while True:
                    try:
                        out = flow.send(result) if failure is None else flow.throw(failure)
                    except StopIteration:
                        break
                    result = failure = None
                    if isinstance(out, Send):
                        self._tell(out.event)
                        continue
                    try:
                        result = await self._do(out)
                    except Exception as error:
                        failure = refusal_of(error)
                        if failure.status == 500:
                            log.error("a Realtime event failed", exc_info=error)
            finally:
                flow.close()
            for id in self._fresh:
                task = asyncio.ensure_future(self._speak(id, self.hearings[id]))
                self._speakers.add(task)
                task.add_done_callback(self._speakers.discard)
            self._fresh.clear()

    # -- work ----------------------------------------------------------------------------------------------------

    async def _do(self, out: Put | Admit | Speak | Stop | Release) -> Any:
        if isinstance(out, Put):
            return await self._put(out)
        if isinstance(out, Admit):
            self.server.access.take(self.caller, self.address)
            self.server.take_seat()
            self.seats.add(out.response_id)
            return self.server.access.rates(self.caller, self.address)
        if isinstance(out, Speak):
            hearing = self.hearings[out.response_id] = Hearing(self.server, self._start(out))
            await hearing.begin()
            self._fresh.append(out.response_id)
        elif isinstance(out, Stop):
            self.hearings[out.response_id].end()
        else:
            self._release(out.response_id)
        return None

    def _release(self, id: str) -> None:
        hearing = self.hearings.pop(id, None)
        if hearing is not None:
            hearing.close()
        if id in self.seats:
            self.seats.discard(id)
            self.server.answering -= 1

    async def _put(self, out: Put) -> Any:
        hosted, server, to = self.hosted, self.server, out.to
        if server.house.is_draining:
            raise stopping()
        if to is not None:
            deadline = time.monotonic() + PATIENCE
            while hosted.stream.has_work and time.monotonic() < deadline:
                await asyncio.sleep(0.005)
            return await server.blocking(lambda: rewrite(hosted, to, out.expected, out.groups, out.said))
        while hosted.pending > server.limits.pending_bytes and not hosted.is_closed and hosted.failure is None:
            await asyncio.sleep(0.02)
        placed = await server.blocking(lambda: say(hosted, out.groups, out.said))
        if hosted.is_long:
            await server.blocking(hosted.compact)
        return placed

    def _start(self, out: Speak) -> Any:
        tokenizer, hosted = self.server.model.tokenizer, self.hosted

        def start(deliver: Deliver) -> Any:
            if out.messages is not None:
                told = [Message(role=role, content=text) for role, text in out.messages]  # type: ignore[arg-type]
                return once(self.server.engine, chat_tokens(tokenizer, told), out.sampling)(deliver)
            if out.parts is not None:
                return hosted.ask_aside(None, True, out.sampling, deliver, ids_of(tokenizer, out.parts))
            return hosted.ask(None, True, out.sampling, deliver)

        return start

    async def _speak(self, id: str, hearing: Hearing) -> None:
        try:
            async for event in hearing:
                await self._room.wait()
                if isinstance(event, Finished):
                    await self._flow(self.protocol.finished(id, event))
                else:
                    for out in self.protocol.said(id, event):
                        if isinstance(out, Send):
                            self._tell(out.event)
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.status == 500:
                log.error("an answer failed", exc_info=error)
            with contextlib.suppress(Refusal):  # the session was deleted: the connection ends by itself
                await self._flow(self.protocol.failed(id, refusal))
        finally:
            self._release(id)


# -- the endpoint ----------------------------------------------------------------------------------------------------


async def realtime(websocket: WebSocket) -> None:
    """WebSocket /v1/realtime?model=NAME[&session=ID]."""
    server: Server = websocket.app.state.server
    caller: Caller = websocket.scope["caller"]
    try:
        hosted, is_kept = await _enter(websocket, server, caller)
    except Exception as error:
        raise refusal_of(error) from error
    server.lines += 1
    server.metrics.lines.inc()
    try:
        await websocket.accept("realtime" if "realtime" in websocket.scope.get("subprotocols", ()) else None)
        await Line(websocket, server, hosted, caller).run()
    except (WebSocketDisconnect, RuntimeError, OSError):
        pass  # gone before it was open
    finally:
        hosted.is_taken = False
        if not is_kept:
            await server.blocking(lambda: server.house.delete(hosted))
        server.lines -= 1
        server.metrics.lines.dec()


async def nowhere(websocket: WebSocket) -> None:
    """A WebSocket to any other path."""
    raise Refusal(f"there is no WebSocket at {path_of(websocket)}: use /v1/realtime.", 404, code="not_found")


async def _enter(websocket: WebSocket, server: Server, caller: Caller) -> tuple[Hosted, bool]:
    """The session of a connection: a new one that ends with it, or one that is kept, by its id."""
    query = websocket.query_params
    name = query.get("model", server.model.name)
    if name != server.model.name:
        raise Refusal(
            f"the model {name!r} is not served here: use {server.model.name!r}.", 404, param="model",
            code="model_not_found",
        )  # fmt: skip
    if server.house.is_draining:
        raise stopping()
    if server.lines >= server.limits.lines:
        raise Refusal(
            f"{server.limits.lines} connections are open: try again soon.", 429, code="rate_limit_exceeded",
            retry_after=5,
        )  # fmt: skip
    id = query.get("session")
    if id is None:
        return await server.blocking(lambda: server.house.create(_new_id("sess"), caller.name, False)), False
    checked(CreateBody, {"id": id})
    try:
        hosted = server.house.get(id, caller.name)
    except Refusal:
        hosted = await server.blocking(lambda: server.house.create(id, caller.name))
    if hosted.is_taken:
        raise Refusal(f"another connection has the session {id}: close it first.", 409, code="busy")
    hosted.is_taken = True
    try:
        server.house.wake(hosted)
        while not hosted.is_live:
            if server.house.is_draining:
                raise stopping()
            hosted._check()
            await asyncio.sleep(0.02)
    except BaseException:
        hosted.is_taken = False
        raise
    return hosted, True
