"""What the figures share: text of the library, a clock that follows the work, percentiles."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

from penstock.core import SimulatedClock
from penstock.engine import Engine, Stepped
from penstock.meter import percentile
from penstock.models.load import Model
from penstock.worlds.library import heldout_text


class Text:
    """Token ids of the held-out library text, cut off in turn and repeated when it ends."""

    def __init__(self, model: Model, most: int = 300_000) -> None:
        self._ids: list[int] = []
        for text in heldout_text():
            self._ids += model.tokenizer(text)["input_ids"]
            if len(self._ids) >= most:
                break
        self._at: Iterator[int] = cycle(self._ids)

    def take(self, count: int) -> list[int]:
        return list(islice(self._at, count))


@dataclass
class Paced:
    """Steps an engine on a simulated clock that moves by the real time of each step: waiting costs no time."""

    engine: Engine
    clock: SimulatedClock
    wall: float = 0.0  # seconds of steps
    events: list[tuple[float, int]] = field(default_factory=list)

    def step(self) -> Stepped:
        began = time.perf_counter()
        stepped = self.engine.step()
        spent = time.perf_counter() - began
        self.wall += spent
        self.clock.sleep(spent)
        return stepped

    def until(self, moment: float) -> None:
        """Work until a moment of the clock; jump there if there is nothing to do."""
        while self.clock.now() < moment:
            if not self.step():
                self.clock.time = moment


def spread(values: Sequence[float], scale: float = 1e3) -> dict[str, float]:
    """p50 and p99 of seconds, in milliseconds."""
    return {f"p{q}": percentile(list(values), q / 100) * scale for q in (50, 99)}
