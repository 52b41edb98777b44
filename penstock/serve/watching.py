"""The server of `penstock watch --serve`: the console's page, one watched stream behind it, on this machine only.

GET  /health, /metrics, /v1/sessions            as of `penstock serve`, for the one stream
GET  /v1/sessions/{id}/events?after=N           what was said since, and the number of the newest picture
GET  /v1/sessions/{id}/picture                  the newest picture, as PNG
POST /v1/sessions/{id}/ask                      {question, interrupt}: the answer as server-sent events
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.serve.access import Access
from penstock.serve.console import console_routes
from penstock.serve.http import refused
from penstock.serve.refusal import Refusal, refusal_of
from penstock.serve.watched import Put, Watched

_LONGEST = 16 << 10  # bytes of a question's body
_LOOK = 0.03  # seconds between two looks for pieces of an answer


class _Guard:
    """Pages of other sites may not look at what a camera sees: as in front of `penstock serve`."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http":
                self.access.admit(scope["path"], Headers(scope=scope), "")
        except Refusal as refusal:
            await refused(refusal)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def create_app(watched: Watched) -> Starlette:
    """The application."""

    def known(request: Request) -> None:
        if request.path_params["id"] != watched.name:
            raise Refusal(f"there is no session {request.path_params['id']!r}: reload the page.", 404, code="not_found")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": watched.model, "watching": watched.name})

    async def metrics(request: Request) -> Response:
        now = watched.session()
        lines = {"penstock_memory_bytes": now["memory_bytes"], "penstock_lag_seconds": now["lag_ms"] / 1000,
                 "penstock_answers_total": now.get("answers", 0)}  # fmt: skip
        page = "".join(f"{name} {value}\n" for name, value in lines.items())
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def sessions(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [watched.session()]})

    async def session(request: Request) -> Response:
        known(request)
        return JSONResponse(watched.session())

    async def events(request: Request) -> Response:
        known(request)
        after = request.query_params.get("after", "0")
        if not after.isdecimal() or len(after) > 18:
            raise Refusal(f"after={after!r} is no number of an event: give one from 0 on.")
        return JSONResponse(watched.news(int(after)))

    async def picture(request: Request) -> Response:
        known(request)
        found = await asyncio.to_thread(watched.picture)
        if found is None:
            return Response(status_code=204)
        headers = {"cache-control": "no-store", "x-frame": str(found[0]), "x-content-type-options": "nosniff"}
        return Response(found[1], media_type="image/png", headers=headers)

    async def ask(request: Request) -> Response:
        known(request)
        text, interrupts = await _question(request)
        return StreamingResponse(_spoken(watched.ask(text, interrupts)), media_type="text/event-stream")

    one = "/v1/sessions/{id}"
    table: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("/health", "GET", health), ("/metrics", "GET", metrics), ("/v1/sessions", "GET", sessions),
        (one, "GET", session), (f"{one}/events", "GET", events), (f"{one}/picture", "GET", picture),
        (f"{one}/ask", "POST", ask),
    ]  # fmt: skip
    routes = [Route(path, _guarded(endpoint), methods=[method]) for path, method, endpoint in table]
    app = Starlette(routes=[*routes, *console_routes()])
    app.add_middleware(_Guard, access=Access())
    return app


def _guarded(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def guard(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:
            return refused(refusal_of(error))

    return guard


async def _question(request: Request) -> tuple[str, bool]:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _LONGEST:
            raise Refusal(f"the question is longer than {_LONGEST} bytes: ask less at once.", 413)
    try:
        given = json.loads(body)
        text, interrupts = given["question"], given.get("interrupt", False)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        text, interrupts = None, False
    if not isinstance(text, str) or not text.strip() or not isinstance(interrupts, bool):
        raise Refusal('there is no question: send {"question": "What is there?"}.', code="invalid_json")
    return text.strip().encode("utf-8", "replace").decode(), interrupts


async def _spoken(put: Put) -> AsyncIterator[str]:
    """Pieces as they come.  Who stops reading ends the answer."""
    told = 0
    try:
        while True:
            event = put.event
            pieces = list(put.pieces)
            for piece in pieces[told:]:
                yield _line({"choices": [{"delta": {"content": piece}, "finish_reason": None}]})
            told = len(pieces)
            if event is not None:
                break
            await asyncio.sleep(_LOOK)
        if event.kind == "error":
            yield _line({"error": {"message": event.text, "code": "failed"}})
        elif not told and event.text:  # a refusal is no answer of the model
            yield _line({"choices": [{"delta": {"content": event.text}, "finish_reason": None}]})
        yield _line({"choices": [{"delta": {}, "finish_reason": event.facts.get("cut", "stop")}]})
        yield _line({"choices": [], "usage": {"completion_tokens": told}})
        yield "data: [DONE]\n\n"
    finally:
        if put.event is None:
            put.cancel()


def _line(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document)}\n\n"


class WatchServer:
    """Serves on a thread of its own, inside its `with` block."""

    def __init__(self, watched: Watched, listener: socket.socket) -> None:
        config = uvicorn.Config(
            create_app(watched), log_config=None, access_log=False, http="h11", lifespan="off", loop="asyncio",
            ws="none", server_header=False, limit_concurrency=64, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server, self._listener = uvicorn.Server(config), listener
        self._thread = threading.Thread(target=self._run, name="penstock-watch-server", daemon=True)

    @property
    def address(self) -> str:
        """Where the page is."""
        host, port = self._listener.getsockname()[:2]
        return f"http://{host}:{port}"

    def _run(self) -> None:
        asyncio.run(self._server.serve([self._listener]))

    def __enter__(self) -> WatchServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(5)
        self._listener.close()
