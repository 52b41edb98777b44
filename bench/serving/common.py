"""What the figures share: text of the library, a clock that follows the work, percentiles."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from penstock.core import Phase, SimulatedClock, Span
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
        self._at = 0

    def take(self, count: int) -> list[int]:
        first = self._at
        self._at = (first + count) % len(self._ids)
        return [self._ids[i % len(self._ids)] for i in range(first, first + count)]


def leave_out_the_model(engine: Engine) -> None:
    """Everything but the pass itself; answers are one word again and again."""
    word = engine.model.tokenizer(" a")["input_ids"][-1]
    answer = torch.zeros(engine.model.attached.vocabulary)
    answer[word] = 1.0

    def step(spans: Sequence[Span], tokens: Sequence[int], logits: Any, phase: Phase = Phase.INGEST) -> torch.Tensor:
        with engine.memory.step(spans, phase):
            return answer.expand(len(logits), -1)

    engine.runner.step = step  # type: ignore[method-assign,assignment]


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
