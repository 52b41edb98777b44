"""One memory on the stream, with what it measures; several run side by side on the same tokens."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from penstock import Session

_RECENT = 1024  # tokens of "now"
_RISE = 0.5  # nats per token above what it was inside the context: the loss has exploded
_SLOWER = 10.0  # times slower than at the beginning
_FIRST = 16  # steps that say how fast the beginning was
_FAR = 32_768  # tokens after which everything about a growing memory was seen


class Point(NamedTuple):
    """Means over the steps of a stretch of the stream."""

    position: float
    nll: float | None
    step_ms: float
    memory_bytes: float


class Trace:
    """What steps measured, in stretches whose length grows with the position: a bounded number, even on a log axis."""

    PER_OCTAVE = 4

    def __init__(self) -> None:
        self._sums: dict[int, list[float]] = {}  # steps, positions, nll, predictions, milliseconds, bytes

    def add(self, position: float, nll: float, predictions: int, milliseconds: float, memory_bytes: int) -> None:
        """One step, by the middle of its tokens."""
        sums = self._sums.setdefault(int(self.PER_OCTAVE * math.log2(position + 1)), [0.0] * 6)
        for i, value in enumerate((1, position, nll, predictions, milliseconds, memory_bytes)):
            sums[i] += value

    def points(self) -> list[Point]:
        """In stream order."""
        rows = [self._sums[key] for key in sorted(self._sums)]
        return [Point(at / n, nll / m if m else None, ms / n, size / n) for n, at, nll, m, ms, size in rows]


@dataclass
class Lane:
    """A session that reads, what its steps measured, and when it is taken out of a comparison."""

    session: Session
    compared: bool = False  # a growing memory may be stopped
    stopped: str | None = None  # why it reads no more
    trace: Trace = field(default_factory=Trace)
    _recent: deque[tuple[float, int, float, int]] = field(default_factory=deque)  # (nll, predictions, seconds, tokens)
    _recent_tokens: int = 0
    _first: list[float] = field(default_factory=list)  # seconds of the first steps

    @property
    def name(self) -> str:
        return str(self.session.method)

    def read(self, tokens: Sequence[int]) -> float:
        """One step; returns its seconds."""
        session, meter = self.session, self.session.meter
        at, nll, predictions, seconds = session.tokens, meter.nll_sum, meter.predictions, meter.seconds
        session.ingest(tokens)
        took = meter.seconds - seconds
        measured = (meter.nll_sum - nll, meter.predictions - predictions)
        self.trace.add(at + len(tokens) / 2, *measured, took * 1e3, session.memory.nbytes)
        self._recent.append((*measured, took, len(tokens)))
        self._recent_tokens += len(tokens)
        while len(self._recent) > 1 and self._recent_tokens - self._recent[0][3] >= _RECENT:
            self._recent_tokens -= self._recent.popleft()[3]
        if len(self._first) < _FIRST:
            self._first.append(took)
        if self.compared and self.session.memory.budget_bytes is None:
            self.stopped = self._verdict()
        return took

    @property
    def nll_now(self) -> float | None:
        """Mean loss of about the last thousand tokens."""
        count = sum(part[1] for part in self._recent)
        return sum(part[0] for part in self._recent) / count if count else None

    @property
    def tokens_per_second_now(self) -> float:
        seconds = sum(part[2] for part in self._recent)
        return self._recent_tokens / seconds if seconds else 0.0

    def nll_between(self, start: int, stop: float = math.inf) -> float | None:
        """Mean loss of the positions from `start` to `stop`, as exactly as the bins tell."""
        nll = self.session.meter.nll
        inside = [i for i in range(len(nll.count)) if nll.count[i] and start <= i * nll.width < stop]
        count = sum(nll.count[i] for i in inside)
        return sum(nll.total[i] for i in inside) / count if count else None

    def _verdict(self) -> str | None:
        """Why a growing memory need not go on."""
        session, context = self.session, self.session.model.context or 2048
        if session.tokens >= 8 * context and session.tokens % _RECENT < session.chunk:
            inside, now = self.nll_between(0, context), self.nll_now
            if inside is not None and now is not None and now > inside + _RISE:
                return f"its loss rose from {inside:.2f} to {now:.2f} beyond the context of {context}"
        recent = [part[2] for part in self._recent]
        if len(recent) >= _FIRST and min(recent) > _SLOWER * sorted(self._first)[len(self._first) // 2]:
            return f"a step took {_SLOWER:.0f} times as long as at the beginning"
        if session.tokens >= _FAR:
            return "it had grown long enough to be compared"
        return None
