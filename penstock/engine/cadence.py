"""Latencies as a reader feels them: time to the first piece, time between pieces, deadlines met."""

from __future__ import annotations

from collections import Counter, deque
from math import inf

from penstock.engine.answer import Answer
from penstock.engine.records import Finish
from penstock.meter import percentile

RECENT = 4096  # newest times kept for percentiles
STALL = 1.0  # seconds between two pieces that count as a stall


class Cadence:
    """Counters of all answers of an engine, in bounded space."""

    def __init__(self) -> None:
        self.first: deque[float] = deque(maxlen=RECENT)
        self.between: deque[float] = deque(maxlen=RECENT)
        self.ended: Counter[str] = Counter()
        self.stalls = self.met = self.missed = 0

    def piece(self, answer: Answer, last: float | None, now: float) -> None:
        """A piece of text at `now`; `last` is the time of the one before."""
        if last is None:
            self.first.append(now - answer.asked)
            return
        self.between.append(now - last)
        self.stalls += now - last > STALL

    def end(self, answer: Answer, finish: Finish, now: float) -> None:
        """An answer has ended."""
        self.ended[finish.value] += 1
        if answer.deadline < inf and finish is not Finish.CANCELLED:
            is_met = now <= answer.deadline and finish in (Finish.STOP, Finish.LENGTH)
            self.met += is_met
            self.missed += not is_met

    def first_ms(self) -> dict[str, float]:
        return _percentiles(self.first)

    def between_ms(self) -> dict[str, float]:
        return _percentiles(self.between)


def _percentiles(seconds: deque[float]) -> dict[str, float]:
    values = list(seconds)
    return {f"p{q}": percentile(values, q / 100) * 1e3 for q in (50, 99)} if values else {}
