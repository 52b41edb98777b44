"""What happened to archived blocks, in sentences that a session shows."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.memory.tiers import TierEvent

KEPT = 64  # sentences
_WORDS = {
    "dropped": "dropped for the limit of the archive",
    "lost": "lost from the disk and not read",
    "late": "not read in time",
    "undurable": "kept in main memory only",
}
_SOME = 4  # blocks that a sentence names


@dataclass
class Losses:
    """The newest sentences.  Of drops, which a full archive has all the time, only the newest is kept."""

    sentences: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))
    _drop: str = ""

    def note(self, event: TierEvent) -> None:
        """Keep an event."""
        said = sentence(event)
        if event.kind == "dropped":
            if self._drop in self.sentences:
                self.sentences.remove(self._drop)
            self._drop = said
        self.sentences.append(said)


def sentence(event: TierEvent) -> str:
    """One sentence: which blocks of which layer, what, and why."""
    if not event.blocks:
        return f"{event.kind}: {event.reason}."
    named = ", ".join(str(block) for block in event.blocks[:_SOME])
    more = f" and {len(event.blocks) - _SOME} more" if len(event.blocks) > _SOME else ""
    what = _WORDS.get(event.kind, event.kind)
    return f"blocks {named}{more} of {event.label.rpartition('/')[0] or event.label} {what}: {event.reason}."
