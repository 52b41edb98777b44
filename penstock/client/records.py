"""What a server tells, as plain values.  Fields that this version does not know are left out."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Self


class _Record:
    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """From the server's JSON."""
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        return cls(**{name: value for name, value in document.items() if name in known})


@dataclass(frozen=True)
class SessionInfo(_Record):
    """A session at one moment; the fields are those of docs/protocol.md."""

    id: str
    created: int  # seconds since 1970
    tokens: int  # of the stream, as far as it is durable
    bytes: int  # appended so far, durable
    tokens_ingested: int  # in the memory
    bytes_pending: int  # taken and not read yet
    memory_bytes: int
    lag_ms: float  # age of the oldest input not read yet
    loss: float | None  # nats per token, where the server measures it
    place: str  # new, device, ram, disk
    answering: int
    durable: bool
    error: str | None = None
    seconds: float = 0.0  # of the model's time, spent on this session since it was made or restored
    pace: dict[str, Any] = field(default_factory=dict)  # how its answers came: first_ms, between_ms, stalls, deadlines


@dataclass(frozen=True)
class Appended(_Record):
    """What became of one append, when it is durable."""

    id: str
    bytes: int  # of this request
    tokens: int  # that it settled
    session_bytes: int
    session_tokens: int


@dataclass(frozen=True)
class Usage(_Record):
    """Tokens of a question with its turn, and of its answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
