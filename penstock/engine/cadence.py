"""Latencies as a reader feels them: time to the first piece, time between pieces, deadlines met."""

from __future__ import annotations

from collections import Counter, deque
from math import inf

from penstock.engine.records import Finish, Pace
from penstock.meter import percentile

RECENT = 4096  # newest times kept for percentiles, of an engine
RECENT_OF_ONE = 128  # of a session
STALL = 1.0  # seconds between two pieces that count as a stall


class Cadence:
    """Counters of answers, in bounded space: those of one session are counted for `all_` of its engine too."""

    def __init__(self, recent: int = RECENT, all_: Cadence | None = None) -> None:
        self.first: deque[float] = deque(maxlen=recent)
        self.between: deque[float] = deque(maxlen=recent)
        self.ended: Counter[str] = Counter()
        self.stalls = self.met = self.missed = 0
        self._all = all_

    def piece(self, asked: float, last: float | None, now: float) -> None:
        """A piece of text at `now`; `last` is the time of the one before."""
        if last is None:
            self.first.append(now - asked)
        else:
            self.between.append(now - last)
            self.stalls += now - last > STALL
        if self._all is not None:
            self._all.piece(asked, last, now)

    def end(self, deadline: float, finish: Finish, now: float) -> None:
        """An answer has ended."""
        self.ended[finish.value] += 1
        if deadline < inf and finish is not Finish.CANCELLED:
            is_met = now <= deadline and finish in (Finish.STOP, Finish.LENGTH)
            self.met += is_met
            self.missed += not is_met
        if self._all is not None:
            self._all.end(deadline, finish, now)

    def pace(self) -> Pace:
        """What a reader would feel."""
        return Pace(_percentiles(self.first), _percentiles(self.between), self.stalls, self.met, self.missed)


def _percentiles(seconds: deque[float]) -> dict[str, float]:
    values = list(seconds)
    return {f"p{q}": percentile(values, q / 100) * 1e3 for q in (50, 99)} if values else {}
