"""Connections that do not say what they want: the header of a request must come in a limited time.

What a request sends behind its header has limits of its own: a JSON body that is late is refused (http.py), an upload
to a stream may be silent for as long as its writer lives, which the operating system asks for (run.py).
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from penstock.serve.refusal import Refusal


class TimedHeaders(H11Protocol):
    """uvicorn's HTTP/1.1; a header that is not whole after `seconds` ends the connection with 408."""

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
        super().connection_lost(exc)

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
