"""What both clients say and how they read what they are told.  Free of I/O."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict
from urllib.parse import quote, urlsplit

from penstock.client.failures import Refused, refused
from penstock.client.records import Usage
from penstock.errors import InputError, PenstockError, UsageError

DEFAULT_URL = "http://127.0.0.1:8321"
PIECE = 1 << 16  # bytes of an upload that are sent at once
HALF = "the text has half a character (a lone surrogate): decode it with errors='replace'."
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PATIENCE = 10.0  # seconds that a retry waits at most


@dataclass(frozen=True)
class Call:
    """One request.  `is_safe`: it may be sent again though the server may have done it already."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    is_safe: bool = False

    def __post_init__(self) -> None:
        try:
            json.dumps(self.body, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise InputError(HALF) from None
        except (TypeError, ValueError) as error:
            raise UsageError(f"the request cannot be written as JSON ({error}): check its values.") from None


@dataclass(frozen=True)
class Where:
    """A server and who asks it."""

    url: str
    token: str | None
    is_loopback: bool

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.token is None else {"authorization": f"Bearer {self.token}"}


def where(url: str | None, token: str | None) -> Where:
    """From arguments or the environment (PENSTOCK_URL, PENSTOCK_TOKEN); raises UsageError."""
    url = url or os.environ.get("PENSTOCK_URL") or DEFAULT_URL
    token = token or os.environ.get("PENSTOCK_TOKEN") or None
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UsageError(f"{url} is not a URL: give one like {DEFAULT_URL}.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url} is not the URL of a server: give one like {DEFAULT_URL}.")
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError("the token has characters that a header cannot carry: check it.")
    base = url.partition("?")[0].partition("#")[0].rstrip("/").removesuffix("/v1")
    return Where(base, token, parts.hostname in _LOOPBACK)


def path_of(id: str, what: str = "") -> str:
    """The path of a session."""
    if not id or id in (".", ".."):
        raise UsageError(f"a session cannot be called {id!r}: give its id.")
    return f"/v1/sessions/{quote(encoded(id), safe='')}{what}"


def create_call(id: str | None) -> Call:
    return Call("POST", "/v1/sessions", {} if id is None else {"id": id})


def fork_call(of: str, id: str | None) -> Call:
    return Call("POST", path_of(of, "/fork"), {} if id is None else {"id": id})


class Asking(TypedDict, total=False):
    """How a question is asked; what is not given, or None, is left to the server."""

    raw: bool  # not wrapped in the turns of a chat template
    remember: bool  # False: on a fork that is dropped
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    stop: str | Sequence[str] | None
    seed: int | None
    deadline: float | None  # seconds; what there is of the answer by then is all of it


def ask_call(id: str, question: str | None, how: Asking) -> Call:
    """A question, answered in events."""
    if unknown := set(how) - set(Asking.__annotations__):
        raise UsageError(f"there is no way {min(unknown)!r} to ask: the ways are {', '.join(Asking.__annotations__)}.")
    body = {name: value for name, value in {"question": question, **how}.items() if value is not None}
    if "stop" in body and not isinstance(body["stop"], str):
        body["stop"] = list(body["stop"])  # type: ignore[call-overload]
    return Call("POST", path_of(id, "/ask"), {**body, "stream": True, "stream_options": {"include_usage": True}})


def encoded(part: str | bytes | bytearray | memoryview) -> bytes:
    """Text as it travels; raises InputError for what is not text."""
    if isinstance(part, str):
        try:
            return part.encode()
        except UnicodeEncodeError:
            raise InputError(HALF) from None
    if isinstance(part, (bytes, bytearray, memoryview)):
        return bytes(part)
    raise UsageError(f"a {type(part).__name__} cannot be appended: give str, bytes or chunks of them.")


def pieces(part: str | bytes) -> Iterator[bytes]:
    """A chunk of an upload, as it is sent."""
    whole = encoded(part)
    return (whole[at : at + PIECE] for at in range(0, len(whole), PIECE))


def parts_of(data: Iterable[str | bytes]) -> Iterator[bytes]:
    """An upload as it is sent: chunks as they come; a file not line by line."""
    read = getattr(data, "read", None)
    source = data if read is None else iter(lambda: read(PIECE) or None, None)
    return (piece for part in source for piece in pieces(part))


def pause(tried: int, retries: int, failure: PenstockError, call: Call, was_sent: bool) -> float:
    """Seconds until a call that has failed may be sent again; raises the failure where it may not.

    Sent again is what surely was not done (nobody listened, or the server refused it for now), and what may be done
    twice.
    """
    if tried >= retries:
        raise failure
    if isinstance(failure, Refused):
        wait = failure.retry_after or 0.25 * 2**tried
        is_for_now = failure.code in ("rate_limit_exceeded", "draining", "overloaded", "restoring")
        if not is_for_now or wait > _PATIENCE or failure.facts.get("bytes"):  # some of an upload was taken
            raise failure
        return wait
    if was_sent and not call.is_safe:
        raise failure
    return 0.25 * 2**tried


def document_of(response: Any) -> dict[str, Any]:
    """The JSON object that a server has answered with."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise refused(response.status_code, response.content)
    return document


class Heard:
    """What both kinds of answer tell of themselves."""

    def __init__(self) -> None:
        self._reader, self._is_cancelled = Reader(), False

    @property
    def finish(self) -> str | None:
        """`stop`, `length` or `cancelled` when it is over, else None."""
        return "cancelled" if self._is_cancelled else self._reader.finish

    @property
    def usage(self) -> Usage | None:
        """Tokens that went in and came out, when it is over."""
        return self._reader.usage


class Reader:
    """Events of one answer: bytes in, pieces of text out.  Lines end with a line feed and nothing else."""

    def __init__(self) -> None:
        self.finish: str | None = None
        self.usage: Usage | None = None
        self.is_over = False
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[str]:
        """Pieces that became whole; then raises Refused if the server tells of a failure."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return (piece for line in lines if (piece := self._line(line.rstrip(b"\r"))))

    def _line(self, line: bytes) -> str:
        if not line.startswith(b"data:"):
            return ""
        payload = line[5:].strip()
        if payload == b"[DONE]":
            self.is_over = True
            return ""
        document = json.loads(payload)
        if "error" in document:
            self.is_over = True
            raise refused(500, document)
        if document.get("usage"):
            self.usage = Usage.of(document["usage"])
        text = ""
        for choice in document.get("choices", []):
            self.finish = choice.get("finish_reason") or self.finish
            text += choice.get("delta", {}).get("content") or ""
        return text
