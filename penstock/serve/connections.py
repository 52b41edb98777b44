"""uvicorn's connections, and what they lack where clients are slow or break the rules.

The header of a request must come in a limited time.  What is sent behind it has limits of its own: a JSON body that is
late is refused (http.py), an upload to a stream may be silent for as long as its writer lives, which the operating
system asks for (run.py).
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from penstock.serve.refusal import Refusal

# What uvicorn and asyncio write of clients that break the rules or leave: anybody could fill a disk with it.
_THEIRS = (
    "Invalid HTTP request", "ASGI callable returned without completing", "Unsupported upgrade request",
    "No supported WebSocket library", "Exceeded concurrency limit", "socket.send() raised exception",
)  # fmt: skip


def is_ours(record: logging.LogRecord) -> bool:
    """Whether a line of a log is about this server and not about what a client did."""
    return not record.getMessage().startswith(_THEIRS)


for _name in ("uvicorn.error", "asyncio"):
    logging.getLogger(_name).addFilter(is_ours)


class HttpConnection(H11Protocol):
    """HTTP/1.1; a header that is not whole after `seconds` ends the connection with 408."""

    def __init__(self, *args: Any, seconds: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._seconds = seconds
        self._due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:  # some of a header, and not all of it
            self._expect()
        else:
            self._expect_no_more()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_no_more()
        self._unset_keepalive_if_required()  # uvicorn leaves it where the peer resets, and with it all of this
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # an answer is under way, or over: nothing else can be said
            self.transport.close()

    def _expect(self) -> None:
        """From now on, unless it has begun: more bytes win no time."""
        if self._due is None:
            self._due = self.loop.call_later(self._seconds, self._end)

    def _expect_no_more(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _end(self) -> None:
        self._due = None
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            return
        refusal = Refusal("the header of the request did not come in time: send it at once.", 408, code="timeout")
        body = json.dumps(refusal.document()).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        response = h11.Response(status_code=408, headers=headers, reason="Request Timeout")
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()


class WebSocketConnection(WebSocketsSansIOProtocol):
    """WebSocket; frames that are broken where no closing frame can be sent end the connection without one."""

    def handle_parser_exception(self) -> None:
        if self.conn.close_sent is None:
            self.transport.close()
        else:
            super().handle_parser_exception()
