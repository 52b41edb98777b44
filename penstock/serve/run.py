"""Run the application: one address, signals that end it cleanly, everything durable first."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import uvicorn

from penstock.errors import UsageError
from penstock.serve.connections import HttpConnection, WebSocketConnection

_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 3}  # a peer that is gone is missed in two minutes


class HttpServer(uvicorn.Server):
    """A uvicorn that says when it is ready, and tells the house first when it is to end."""

    def __init__(self, app: Any, listener: socket.socket, on_ready: Callable[[str], None] | None = None) -> None:
        grace = app.state.server.limits.drain_seconds
        timed: Any = partial(HttpConnection, seconds=app.state.server.limits.header_seconds)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, http=timed, lifespan="on", loop="asyncio",
            ws=WebSocketConnection, ws_max_size=app.state.server.limits.event_bytes, ws_per_message_deflate=False,
            ws_ping_interval=20.0, ws_ping_timeout=60.0,
            timeout_graceful_shutdown=max(1, round(grace)), server_header=False, h11_max_incomplete_event_size=1 << 16,
            limit_concurrency=4096, backlog=1024, timeout_keep_alive=75,
        )  # fmt: skip
        super().__init__(config)
        self._listener, self._on_ready, self._server = listener, on_ready, app.state.server

    @property
    def address(self) -> str:
        """Where it listens."""
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_ready is not None and not self.should_exit:
            self._on_ready(self.address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._server.begin_drain()  # answers end with their next piece, so that connections do
        await self._server.lines_closed()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM drain; a second one ends at once.  Unlike uvicorn's own, not raised again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def serve_here(self) -> None:
        """Serve until a signal, or `should_exit`."""
        asyncio.run(self.serve([self._listener]))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # connections inherit it
        for name, value in _ALIVE.items():
            if hasattr(socket, name):
                listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another --port or --host."
        ) from None
    return listener
