"""The client for ordinary code."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Iterator
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
    where,
)
from penstock.client.failures import BrokenOff, refused
from penstock.client.records import Appended, SessionInfo
from penstock.client.transport import failed, library, settings
from penstock.errors import PenstockError


class Answer(Heard):
    """An iterator of pieces of text.  Leaving it, or `cancel` from another thread, ends the answer at the server."""

    def __init__(self, client: Client, response: Any) -> None:
        super().__init__()
        self._client, self._response = client, response
        self._pieces = self._read()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def _read(self) -> Iterator[str]:
        try:
            for data in self._response.iter_bytes():
                yield from self._reader.feed(data)
                if self._reader.is_over:
                    return
        except PenstockError:
            raise
        except library().HTTPError as error:
            if not self._is_cancelled:
                raise failed(error, self._client.at)[0] from None
        finally:
            self._response.close()
        if not self._is_cancelled:
            raise BrokenOff("the answer ended in the middle: see whether the server still runs.")

    def text(self) -> str:
        """All of the rest, when it is over."""
        return "".join(self)

    def cancel(self) -> None:
        """End it where it is, also while another thread reads it: the stream keeps what was put out."""
        if not self._reader.is_over:
            self._is_cancelled = True
            stream = self._response.extensions.get("network_stream")
            wire = None if stream is None else stream.get_extra_info("socket")
            if wire is not None:  # wakes a reader, which closing would not
                with contextlib.suppress(OSError):
                    wire.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """The same, for the thread that reads it."""
        self.cancel()
        self._pieces.close()  # type: ignore[attr-defined]
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class ClientSession:
    """One endless stream of a server."""

    def __init__(self, client: Client, id: str) -> None:
        self._client, self.id = client, id

    def __repr__(self) -> str:
        return f"<session {self.id} at {self._client.at.url}>"

    def info(self) -> SessionInfo:
        """How it is now."""
        return SessionInfo.of(self._client._json(Call("GET", path_of(self.id), is_safe=True)))

    def append(self, data: str | bytes | Iterable[str | bytes]) -> Appended:
        """More of the stream, of any length; returns when the server has it on its disk."""
        path = path_of(self.id, "/append")
        if isinstance(data, (str, bytes, bytearray, memoryview)):
            return Appended.of(self._client._json(Call("POST", path), encoded(data)))
        return Appended.of(self._client._json(Call("POST", path), parts_of(data), retries=0))

    def ask(self, question: str | None = None, **how: Unpack[Asking]) -> Answer:
        """A question behind all that was appended; returns when the answer begins.  None: the model goes on."""
        return self._client._answer(ask_call(self.id, question, how))

    def fork(self, id: str | None = None) -> ClientSession:
        """A second session with the same past."""
        return ClientSession(self._client, self._client._json(fork_call(self.id, id))["id"])

    def truncate(self, tokens: int) -> SessionInfo:
        """Keep the first `tokens`, exactly; raises NotRewindable when what that needs was evicted."""
        return SessionInfo.of(self._client._json(Call("POST", path_of(self.id, "/truncate"), {"tokens": tokens})))

    def save(self) -> int:
        """Write a snapshot at the server; returns its bytes."""
        return int(self._client._json(Call("POST", path_of(self.id, "/save"), {}, is_safe=True))["bytes"])

    def delete(self) -> None:
        """End it for good."""
        self._client._json(Call("DELETE", path_of(self.id)))


class Sessions:
    """The sessions of a server that belong to this client's token."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, id: str | None = None) -> ClientSession:
        """A new session; without an id the server chooses one."""
        return ClientSession(self._client, self._client._json(create_call(id))["id"])

    def get(self, id: str) -> ClientSession:
        """A session that exists; UsageError if not."""
        self._client._json(Call("GET", path_of(id), is_safe=True))
        return ClientSession(self._client, id)

    def list(self) -> list[SessionInfo]:
        """All of them, oldest first."""
        found = self._client._json(Call("GET", "/v1/sessions", is_safe=True))["data"]
        return [SessionInfo.of(document) for document in found]

    def __iter__(self) -> Iterator[ClientSession]:
        return (ClientSession(self._client, info.id) for info in self.list())


class Client:
    """A client of `penstock serve`; may be shared by threads.

    `url` and `token` are PENSTOCK_URL and PENSTOCK_TOKEN if not given.  `timeout`: seconds without a byte, but for
    appends and answers, which wait as long as the server does.  `retries`: of requests that surely were not done, or
    may be done twice.
    """

    def __init__(
        self, url: str | None = None, *, token: str | None = None, timeout: float = 60.0, retries: int = 2,
        transport: Any = None,
    ) -> None:  # fmt: skip
        self.at = where(url, token)
        self.retries = retries
        self._http = library().Client(**settings(self.at, timeout, transport))
        self.sessions = Sessions(self)

    def health(self) -> dict[str, Any]:
        """What the server says of itself; also when it calls itself ill."""
        return self._json(Call("GET", "/health", is_safe=True), accepts=(503,))

    def model(self) -> str:
        """The name of the model that it serves."""
        return str(self._json(Call("GET", "/v1/models", is_safe=True))["data"][0]["id"])

    def close(self) -> None:
        """Let go of all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _json(
        self, call: Call, content: Any = None, retries: int | None = None, accepts: tuple[int, ...] = ()
    ) -> dict[str, Any]:  # fmt: skip
        return document_of(self._sent(call, content, self.retries if retries is None else retries, accepts))

    def _answer(self, call: Call) -> Answer:
        return Answer(self, self._sent(call, None, self.retries, (), is_stream=True))

    def _sent(
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
                response = self._http.send(request, stream=True)
                try:
                    if response.status_code < 400 or response.status_code in accepts:
                        if not is_stream:
                            response.read()
                        return response
                    failure = refused(response.status_code, response.read(), response.headers.get("retry-after"))
                except BaseException:
                    response.close()
                    raise
                was_sent = False
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                failure, was_sent = failed(error, self.at)
            wait = pause(tried, retries, failure, call, was_sent)
            tried += 1
            time.sleep(wait)
