"""The application: routes, and the guard in front of them.  What is said, and in which order: docs/protocol.md."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from h11 import LocalProtocolError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from penstock.serve import openai, streams
from penstock.serve.access import Access
from penstock.serve.console import console_routes
from penstock.serve.house import House
from penstock.serve.http import Endpoint, Limits, Server, guarded, path_of, refused, server_of
from penstock.serve.metrics import Metrics
from penstock.serve.realtime.line import nowhere, realtime
from penstock.serve.refusal import Refusal, refusal_of

STUCK = 120.0  # seconds without a step, though there is work, after which the server calls itself ill
_FREE = 1 << 20  # bytes that the disk must have


class Guard:
    """In front of all routes: who asks, how often, from where; and what came of it."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._connect(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        address = scope["client"][0] if scope.get("client") else ""
        try:
            scope["caller"] = self.server.access.admit(scope["path"], Headers(scope=scope), address)
            await self.app(scope, receive, sending)
        except Refusal as refusal:
            await refused(refusal)(scope, receive, sending)
        except LocalProtocolError:
            pass  # what the client sent behind its request broke the connection: nobody reads the answer
        finally:
            route = scope.get("route")
            self.server.metrics.requests.labels(getattr(route, "path", "other"), str(status)).inc()

    async def _connect(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket: refused before it is open, with the same statuses and bodies."""
        address = scope["client"][0] if scope.get("client") else ""
        try:
            scope["caller"] = self.server.access.admit(scope["path"], Headers(scope=scope), address)
            await self.app(scope, receive, send)
        except Refusal as refusal:
            self.server.metrics.requests.labels("websocket", str(refusal.status)).inc()
            await WebSocket(scope, receive, send).send_denial_response(refused(refusal))


async def health(request: Request) -> Response:
    """GET /health: whether the engine moves, the disk has room, and the server is not stopping."""
    server = server_of(request)
    faults = []
    if not server.engine.is_running:
        faults.append("the engine has stopped")
    stats = server.engine.stats()
    if stats.still > STUCK:
        faults.append(f"there is work, and no step has ended for {stats.still:.0f} seconds")
    root = server.house.root
    if root is not None:
        try:
            if shutil.disk_usage(root).free < _FREE:
                faults.append("the disk is full")
        except OSError as error:
            faults.append(f"the state folder cannot be used ({error.strerror})")
    if server.house.is_draining:
        faults.append("the server is stopping")
    facts = {"status": "ill" if faults else "ok", "faults": faults, "model": server.model.name}
    facts |= {"sessions": len(server.house.sessions), "stuck": stats.stuck, "steps": stats.steps}
    return JSONResponse(facts, 503 if faults else 200)


async def metrics(request: Request) -> Response:
    """GET /metrics."""
    server = server_of(request)
    server.metrics.tasks.set(len(asyncio.all_tasks()))
    page = await server.blocking(server.metrics.page)
    return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")


def _routes() -> list[BaseRoute]:
    one = "/v1/sessions/{id}"
    table: list[tuple[str, str, Callable[..., Any]]] = [
        ("/health", "GET", health),
        ("/metrics", "GET", metrics),
        ("/v1/models", "GET", openai.models),
        ("/v1/models/{model:path}", "GET", openai.model),
        ("/v1/chat/completions", "POST", openai.chat),
        ("/v1/completions", "POST", openai.completions),
        ("/v1/sessions", "GET POST", streams.sessions),
        (one, "GET DELETE", streams.session),
        (f"{one}/append", "POST", streams.append),
        (f"{one}/ask", "POST", streams.ask),
        (f"{one}/fork", "POST", streams.fork),
        (f"{one}/truncate", "POST", streams.truncate),
        (f"{one}/save", "POST", streams.save),
    ]
    served = [Route(path, guarded(endpoint), methods=methods.split()) for path, methods, endpoint in table]
    sockets = [WebSocketRoute("/v1/realtime", realtime), WebSocketRoute("/{path:path}", nowhere)]
    return [*served, *console_routes(), *sockets]


async def _unrouted(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: no such path, not this method, a body that ended early."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    what = f"{request.method} {path_of(request)}"
    sentence = {
        404: f"there is nothing at {what}: see docs/protocol.md.",
        405: f"{what} is not a method of this path: see docs/protocol.md.",
    }.get(status, f"{what} cannot be served: see docs/protocol.md.")
    return refused(Refusal(sentence, status, code="not_found" if status == 404 else None))


def create_app(
    engine: Any, model: Any, *, state: Path | None = None, access: Access | None = None, limits: Limits | None = None
) -> Starlette:  # fmt: skip
    """The application on a running engine; sessions of earlier runs are found in `state` here."""
    limits = limits or Limits()
    house = House(engine, model, state, limits.sessions)
    if access is not None and access.tokens is not None:
        house.allowed = {c.name: c.sessions for c in access.tokens.values() if c.sessions is not None}
    server = Server(engine, model, house, access or Access(), Metrics(house), limits)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
            await asyncio.to_thread(house.drain, limits.drain_seconds)
        finally:
            house.close()
            server.threads.shutdown(wait=False)

    app = Starlette(routes=_routes(), lifespan=lifespan, exception_handlers={HTTPException: _unrouted})
    app.state.server = server
    app.add_middleware(Guard, server=server)
    return app


__all__ = ["Endpoint", "create_app", "refusal_of"]
