"""What a watcher says: one event per thing that happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from penstock.watch.counts import Counts

Kind = Literal["frame_stats", "answer", "announcement", "silence", "dropped", "error"]


@dataclass(frozen=True)
class Event:
    """Something at second `t` of the stream; `facts` go beside the fixed fields in a JSON document."""

    t: float
    kind: Kind
    text: str = ""
    question: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return {"t": round(self.t, 3), "kind": self.kind, "text": self.text, "question": self.question, **self.facts}


class Record:
    """What one watcher tells and counts, and the second of the stream where it is."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self.emit = emit
        self.counts = Counts()
        self.t = 0.0

    def tell(
        self, kind: Kind, text: str, question: str | None = None, facts: dict[str, Any] | None = None,
        t: float | None = None,
    ) -> Event:  # fmt: skip
        """Something happened, now or at second t."""
        event = Event(self.t if t is None else t, kind, text, question, facts or {})
        self.emit(event)
        return event

    def error(self, text: str, question: str | None = None, facts: dict[str, Any] | None = None) -> Event:
        """Something went wrong; watching goes on."""
        self.counts.errors += 1
        return self.tell("error", text, question, facts)
