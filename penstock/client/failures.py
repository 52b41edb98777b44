"""What a server or the way to it can fail with, as errors of this package.

Refused (status, code, param, retry_after), and one of
    UsageError     the request cannot be served, now or later
    ContextFull    a memory that forgets nothing is full
    NotRewindable  what a truncation needs was evicted
    Overloaded     the same request may succeed later
    OutputError    the disk of the server is full
Unreachable        no server, or one that does not answer
BrokenOff          the connection ended in the middle of an answer or an upload
"""

from __future__ import annotations

import json
from typing import Any

from penstock.errors import ContextFull, NotRewindable, OutputError, Overloaded, PenstockError, UsageError


class Unreachable(PenstockError):
    """Nobody answers there."""


class BrokenOff(PenstockError):
    """The connection ended early: what the server took of the request is unknown."""


class Refused(PenstockError):
    """The server said no: `status` and `code` as in docs/protocol.md; `facts` what else it told."""

    def __init__(self, message: str, status: int, code: str | None, param: str | None, facts: dict[str, Any]) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.facts = status, code, param, facts
        self.retry_after: float | None = None


class _Usage(Refused, UsageError):
    pass


class _Full(Refused, ContextFull):
    pass


class _NotExact(Refused, NotRewindable):
    pass


class _Later(Refused, Overloaded):
    pass


class _Output(Refused, OutputError):
    pass


_BY_CODE: dict[str, type[Refused]] = {
    "context_length_exceeded": _Full,
    "not_exact": _NotExact,
    "answering": _Later,
    "busy": _Later,
    "draining": _Later,
    "overloaded": _Later,
    "sessions": _Later,
    "insufficient_storage": _Output,
}


def refused(status: int, body: bytes | dict[str, Any], retry_after: str | None = None) -> Refused:
    """The error of an answer with a status of 400 or more, or of an event that tells of one."""
    try:
        document = json.loads(body) if isinstance(body, bytes) else body
        error = document["error"]
        message, code, param = str(error["message"]), error.get("code"), error.get("param")
    except (ValueError, TypeError, KeyError, AttributeError):
        document, code, param = {}, None, None
        message = f"the server said {status} and nothing that a penstock server says: check the URL."
    kind = _BY_CODE.get(str(code))
    if kind is None:
        kind = _Later if status in (408, 429, 503) else _Usage if 400 <= status < 500 else Refused
    facts = {name: value for name, value in document.items() if name != "error"}
    out = kind(message, status, None if code is None else str(code), param, facts)
    try:
        out.retry_after = None if retry_after is None else float(retry_after)
    except ValueError:
        out.retry_after = None
    return out
