"""The endpoints of sessions that never end: create, append, ask, fork, truncate, save, look, delete."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any
from weakref import WeakKeyDictionary

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from penstock.serve.asked import Asked, Deliver
from penstock.serve.bodies import BadLine, decoder_for
from penstock.serve.chunks import Chat
from penstock.serve.hosted import Hosted
from penstock.serve.http import caller_of, json_body, server_of
from penstock.serve.refusal import Refusal, refusal_of, stopping
from penstock.serve.replies import respond, sampling_of
from penstock.serve.wire import AskBody, CreateBody, EmptyBody, ForkBody, TruncateBody, checked

PIECE = 1 << 16  # bytes of one record
_UPLOADS: WeakKeyDictionary[Hosted, asyncio.Lock] = WeakKeyDictionary()


def _hosted(request: Request) -> Hosted:
    return server_of(request).house.get(request.path_params["id"], caller_of(request).name)


async def _awake(request: Request) -> Hosted:
    """The session, with its stream: one of an earlier run is restored first."""
    hosted, house = _hosted(request), server_of(request).house
    house.wake(hosted)
    while not hosted.is_live and not hosted.is_closed and hosted.failure is None:
        if house.is_draining:
            raise stopping()
        if await request.is_disconnected():
            break
        await asyncio.sleep(0.02)
    return hosted


async def sessions(request: Request) -> Response:
    """GET and POST /v1/sessions."""
    server, owner = server_of(request), caller_of(request).name
    if request.method == "GET":
        found = await server.blocking(lambda: [hosted.document() for hosted in server.house.of(owner)])
        return JSONResponse({"object": "list", "data": found})
    body = checked(CreateBody, await json_body(request))
    hosted = await server.blocking(lambda: server.house.create(body.id, owner))
    return JSONResponse(hosted.document(), 201)


async def session(request: Request) -> Response:
    """GET and DELETE /v1/sessions/{id}."""
    server, hosted = server_of(request), _hosted(request)
    if request.method == "DELETE":
        await server.blocking(lambda: server.house.delete(hosted))
        return JSONResponse({"id": hosted.id, "object": "session.deleted", "deleted": True})
    return JSONResponse(await server.blocking(hosted.document))


async def append(request: Request) -> Response:
    """POST /v1/sessions/{id}/append: a body of any length, taken piece by piece as it arrives."""
    server, hosted = server_of(request), _hosted(request)
    decoder = decoder_for(request.headers.get("content-type", ""))
    taken = {"bytes": 0, "tokens": 0}

    def facts() -> dict[str, Any]:
        tally = hosted.tally
        return {"id": hosted.id, **taken, "session_bytes": tally.bytes, "session_tokens": tally.tokens}

    async def take(data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            await _room(request, hosted)
            taken["tokens"] += await server.blocking(lambda piece=piece: hosted.append(piece))  # type: ignore[misc]
            taken["bytes"] += len(piece)
            server.metrics.appended.inc(len(piece))
            if hosted.is_long:
                await server.blocking(hosted.compact)

    async with _UPLOADS.setdefault(hosted, asyncio.Lock()):  # uploads to one session: one after another, whole
        server.house.wake(hosted)
        try:
            async for part in _arriving(request):
                await take(decoder.push(part))
            await take(decoder.end())
        except BadLine as bad:
            await take(bad.before)
            raise _with(bad.refusal, facts()) from None
        except (Refusal, OSError) as error:
            raise _with(refusal_of(error), facts()) from None
    return JSONResponse(facts())


async def _arriving(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes, until it ends, or the server does."""
    draining = asyncio.ensure_future(server_of(request).draining.wait())
    try:
        while True:
            message = asyncio.ensure_future(request.receive())
            await asyncio.wait({message, draining}, return_when=asyncio.FIRST_COMPLETED)
            if not message.done():
                message.cancel()
                raise stopping()
            got = message.result()
            if got["type"] == "http.disconnect":
                raise ClientDisconnect
            yield got.get("body", b"")
            if not got.get("more_body", False):
                return
            if draining.done():
                raise stopping()
    finally:
        draining.cancel()


def _with(refusal: Refusal, facts: dict[str, Any]) -> Refusal:
    """A refusal that also tells what was taken before it."""
    refusal.facts = facts
    return refusal


async def _room(request: Request, hosted: Hosted) -> None:
    """Wait until the session has read enough of what it was given before: the writer feels it as a slow connection."""
    server = server_of(request)
    while hosted.pending > server.limits.pending_bytes and hosted.failure is None and not hosted.is_closed:
        if server.house.is_draining:
            raise stopping()
        await asyncio.sleep(0.02)


async def ask(request: Request) -> Response:
    """POST /v1/sessions/{id}/ask."""
    body = checked(AskBody, await json_body(request))
    hosted = await _awake(request)
    sampling = sampling_of(body, 0.0, 0, body.max_completion_tokens)
    if body.deadline is not None:
        sampling["deadline"] = body.deadline
    shape = Chat(f"ask-{secrets.token_hex(12)}", server_of(request).model.name, int(time.time()), body.wants_usage)

    def start(deliver: Deliver) -> Asked:
        put = hosted.ask if body.remember else hosted.ask_aside
        return put(body.question, body.raw, sampling, deliver)

    return await respond(request, shape, [start], body.stream is not False)


async def fork(request: Request) -> Response:
    """POST /v1/sessions/{id}/fork."""
    server, body = server_of(request), checked(ForkBody, await json_body(request))
    hosted = await _awake(request)
    other = await server.blocking(lambda: server.house.fork(hosted, body.id))
    return JSONResponse({**other.document(), "forked_from": hosted.id}, 201)


async def truncate(request: Request) -> Response:
    """POST /v1/sessions/{id}/truncate."""
    server, body = server_of(request), checked(TruncateBody, await json_body(request))
    hosted = await _awake(request)
    async with _uploading(hosted):
        await server.blocking(lambda: hosted.truncate(body.tokens))
    return JSONResponse(hosted.document())


async def save(request: Request) -> Response:
    """POST /v1/sessions/{id}/save."""
    server = server_of(request)
    checked(EmptyBody, await json_body(request))
    hosted = await _awake(request)
    async with _uploading(hosted):
        size = await server.blocking(hosted.save)
    return JSONResponse({"id": hosted.id, "object": "session.saved", "tokens": hosted.tally.tokens, "bytes": size})


@contextlib.asynccontextmanager
async def _uploading(hosted: Hosted) -> AsyncIterator[None]:
    """Nothing is appended meanwhile; an upload under way is a conflict, since it may never end."""
    lock = _UPLOADS.setdefault(hosted, asyncio.Lock())
    if lock.locked():
        raise Refusal("text is being appended to this session: wait for the end of that request.", 409, code="busy")
    async with lock:
        yield
