"""What a watcher says: one record per thing that happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

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
