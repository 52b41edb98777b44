"""What the protocol asks of whoever has the connection: events to send, and work whose result it waits for.  Pure."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.serve.realtime.script import Part


@dataclass(frozen=True)
class Send:
    """An event for the client."""

    event: dict[str, Any]


@dataclass(frozen=True)
class Put:
    """Groups of parts go behind the stream, which is cut to `to` tokens before (None: it is not); gives Placed."""

    groups: Sequence[Sequence[Part]]
    said: str
    to: int | None = None
    expected: int = 0


@dataclass(frozen=True)
class Admit:
    """A seat for one more answer; gives the rate limits as they are then."""

    response_id: str


@dataclass(frozen=True)
class Speak:
    """Begin an answer: of the stream; of a fork behind `parts`; or of `messages` (role, text) alone."""

    response_id: str
    sampling: dict[str, Any]
    parts: Sequence[Part] | None = None
    messages: Sequence[tuple[str, str]] | None = None


@dataclass(frozen=True)
class Stop:
    """End an answer where it is."""

    response_id: str


@dataclass(frozen=True)
class Release:
    """An answer will not come: its seat is free again."""

    response_id: str


Out = Send | Put | Admit | Speak | Stop | Release
Flow = Generator[Out, Any, None]
