"""Recompute or swap: how does a session that must leave its row come back at the least cost?

Swapping copies the row out and in again; recomputing keeps nothing but the tokens and reads them once more.  Which is
cheaper depends on how much the session holds, not on what the one that takes its row wants (arXiv:2604.16395): two
curves over that length, measured on this machine with this memory, decide.  Tokens are read again only where that is
exact: if the log still has all of them, and the memory does not care in which phase they came.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy
from safetensors.torch import load_file, save_file

from penstock.core import Span
from penstock.memory import Memory
from penstock.models.paths import Runner

WAYS = ("swap", "recompute", "measured")


@dataclass(frozen=True)
class Curve:
    """Seconds as a quadratic of tokens, and how well it fits."""

    coefficients: tuple[float, float, float]  # constant, linear, quadratic
    r_squared: float = 1.0

    def __call__(self, tokens: int) -> float:
        a, b, c = self.coefficients
        return max(0.0, a + b * tokens + c * tokens * tokens)


def fit(points: Sequence[tuple[int, float]]) -> Curve:
    """The least-squares quadratic through (tokens, seconds)."""
    x, y = (numpy.array(column, dtype=float) for column in zip(*points))
    c, b, a = numpy.polyfit(x, y, min(2, len(set(x)) - 1)).tolist() if len(set(x)) > 2 else (0.0, 0.0, y.mean())
    curve = Curve((a, b, c))
    spread = float(((y - y.mean()) ** 2).sum())
    rest = sum((curve(int(n)) - s) ** 2 for n, s in points)
    return Curve(curve.coefficients, 1.0 - rest / spread if spread else 1.0)


@dataclass(frozen=True)
class Costs:
    """What it takes to bring a session of some length back, out and in together."""

    recompute: Curve
    swap: Curve

    def recomputes(self, tokens: int) -> bool:
        """Whether reading again is cheaper for a session that holds so many tokens."""
        return self.recompute(tokens) < self.swap(tokens)


def measure(
    runner: Runner, chunk: int, most: int = 1024, through_disk: Path | None = None, repeats: int = 7, drop: int = 2
) -> Costs:  # fmt: skip
    """The curves of this model, memory and machine: lengths by powers of two from 8 to `most`; some seconds."""
    memory = Memory(runner.memory.geometry, runner.memory.cascades)
    scratch = Runner(runner.attached, memory, "eager", chunk)
    lengths = [n for n in (8 << i for i in range(20)) if n <= most]
    read, swap = [], []
    for length in lengths:
        memory.reset()
        read.append((length, _median(partial(again, scratch, chunk, [0] * length), repeats, drop, memory.reset)))
        memory.reset()
        again(scratch, chunk, [0] * length)

        def there_and_back(length: int = length) -> None:
            state = {name: t.clone() for name, t in memory.save_row().items()}
            if through_disk is not None:
                with tempfile.NamedTemporaryFile(dir=through_disk) as file:
                    save_file(state, file.name)
                    state = load_file(file.name)
            memory.load_row(state, length)

        swap.append((length, _median(there_and_back, repeats, drop)))
    return Costs(fit(read), fit(swap))


def again(runner: Runner, chunk: int, tokens: Sequence[int], row: int = 0) -> None:
    """Read tokens into an empty row."""
    for start in range(0, len(tokens), chunk):
        part = list(tokens[start : start + chunk])
        runner.step([Span(row, len(part))], part, "none")


def _median(
    act: Callable[[], None], repeats: int, drop: int, before: Callable[[], None] = lambda: None
) -> float:  # fmt: skip
    times = []
    for _ in range(repeats):
        before()
        began = time.perf_counter()
        act()
        times.append(time.perf_counter() - began)
    return statistics.median(times[drop:])
