"""What a session tells of itself: its figures, what it lost, and its memory seen from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.memory import SegmentView

if TYPE_CHECKING:
    from penstock.session import Session


@dataclass(frozen=True)
class Stats:
    """A session at one moment.  Bytes are real storage; `tokens` are model inputs so far."""

    tokens: int
    memory_bytes: int
    budget_bytes: int | None
    pending_bytes: int
    nll_mean: float | None
    tokens_per_second: float
    step_ms: dict[str, float]
    path: str
    digest: str


@dataclass(frozen=True)
class Evicted:
    """Entries that no layer holds any more: indices seen, and their tokens as far as the log still has them."""

    seen: range
    tokens: tuple[int, ...]


class RememberedMemory:
    """What is asked of a session's memory from outside: `view`, `nbytes`, `budget_bytes`, `events`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def view(self) -> list[SegmentView]:
        """What is still remembered, by index seen."""
        return self._session._memory.view(self._session.row)

    @property
    def nbytes(self) -> int:
        """Bytes of the real storage."""
        return self._session._memory.nbytes

    @property
    def budget_bytes(self) -> int | None:
        """Bytes that the memory may hold by its own formula; None when it grows."""
        return self._session._memory.budget_bytes

    @property
    def events(self) -> list[str]:
        """The newest sentences (64 at most) about archived blocks that were lost, dropped or late, oldest first."""
        return list(self._session._memory.events)
