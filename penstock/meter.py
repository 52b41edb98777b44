"""What a session measures of itself, in space that is taken at once and never grows: loss and latency against
position, counters, memory.

Positions fall into bins of equal width; when there are too many bins, neighbours join and the width doubles, so a
stream of any length is described by at most `BINS` points.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

BINS = 128
RESERVOIR = 1024  # newest step times kept for percentiles


@dataclass
class Bins:
    """Sums by position, each bin `width` positions wide."""

    width: int = 256
    count: array[int] = field(default_factory=lambda: array("q", bytes(8 * BINS)))
    total: array[float] = field(default_factory=lambda: array("d", bytes(8 * BINS)))

    def add(self, position: int, value: float, count: int = 1) -> None:
        """Add `count` values with the sum `value` at a position."""
        while position // self.width >= BINS:
            for i in range(BINS):  # in place: the second half becomes empty
                is_half = 2 * i < BINS
                self.count[i] = self.count[2 * i] + self.count[2 * i + 1] if is_half else 0
                self.total[i] = self.total[2 * i] + self.total[2 * i + 1] if is_half else 0.0
            self.width *= 2
        self.count[position // self.width] += count
        self.total[position // self.width] += value

    def means(self) -> list[tuple[int, int, float]]:
        """(from, to, mean) of every bin that has values."""
        w = self.width
        return [(i * w, (i + 1) * w, t / n) for i, (n, t) in enumerate(zip(self.count, self.total)) if n]


def percentile(values: Sequence[float], q: float) -> float:
    """The q-quantile (0..1) by linear interpolation; nan when there is nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


@dataclass
class Meter:
    """Counters of one session.  Times in seconds, losses in nats per predicted token."""

    tokens: int = 0
    seconds: float = 0.0
    predictions: int = 0
    nll_sum: float = 0.0
    nll: Bins = field(default_factory=Bins)
    step_ms: Bins = field(default_factory=Bins)
    peak_bytes: int = 0
    recent_nll: float | None = None  # mean of the last step that had predictions
    _times: array[float] = field(default_factory=lambda: array("f", bytes(4 * RESERVOIR)))  # a ring
    _steps: int = 0

    def step(self, position: int, tokens: int, seconds: float, nbytes: int) -> None:
        """One step that began at `position` and took `seconds`."""
        self.tokens += tokens
        self.seconds += seconds
        self.peak_bytes = max(self.peak_bytes, nbytes)
        self.step_ms.add(position, seconds * 1e3)
        self._times[self._steps % RESERVOIR] = seconds
        self._steps += 1

    def losses(self, position: int, values: Sequence[float]) -> None:
        """Losses of the tokens at `position`, `position + 1`, ..."""
        if not values:
            return
        self.predictions += len(values)
        total = float(sum(values))
        self.nll_sum += total
        self.recent_nll = total / len(values)
        if position // self.nll.width == (position + len(values) - 1) // self.nll.width:
            self.nll.add(position, total, len(values))
        else:
            for i, value in enumerate(values):
                self.nll.add(position + i, value)

    @property
    def nll_mean(self) -> float | None:
        return self.nll_sum / self.predictions if self.predictions else None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def step_percentiles(self) -> dict[str, float]:
        """p50, p95 and p99 of the newest steps in milliseconds."""
        times = self._times[: self._steps]
        return {f"p{q}": percentile(times, q / 100) * 1e3 for q in (50, 95, 99)}
