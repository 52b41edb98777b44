"""Time between tokens of answers under way, alone and beside a session that reads a long file."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from bench.report import say, table
from bench.serving.common import Text, spread
from penstock.engine import Answer, Engine, EngineSession, Targets, step
from penstock.models.load import Model


class Speakers:
    """Sessions that answer without end: who has finished is asked again."""

    def __init__(self, engine: Engine, count: int, text: Text) -> None:
        self.engine = engine
        self.sessions = [engine.open() for _ in range(count)]
        for session in self.sessions:
            session.append(text.take(400))
        engine.drain()
        self.answers: dict[str, Answer] = {}
        self.gaps: list[float] = []
        self._last: dict[str, float] = {}

    def go_on(self) -> None:
        """One step, and the gaps between the tokens of each answer."""
        for session in self.sessions:
            answer = self.answers.get(session.id)
            if answer is None or answer.finish is not None:
                self.answers[session.id] = session.ask(max_new=256)
                self._last.pop(session.id, None)
        stepped, now = self.engine.step(), step.time.perf_counter()
        for id in stepped.decoded:
            if id in self._last:
                self.gaps.append(now - self._last[id])
            self._last[id] = now

    def measure(self, steps: int) -> list[float]:
        self.gaps = []
        for _ in range(steps):
            self.go_on()
        return self.gaps


def _beside(speakers: Speakers, reader: EngineSession, tokens: list[int]) -> tuple[list[float], float]:
    speakers.gaps = []
    reader.append(tokens)
    began = step.time.perf_counter()
    while reader.has_work:
        speakers.go_on()
    return speakers.gaps, step.time.perf_counter() - began


def run(
    model: Model, live: int, file_tokens: int, budget: int, is_processor: bool = False, path: str = "auto"
) -> dict[str, Any]:
    """p99 with and without a target; without one only a tenth of the file is read: its gaps are all alike.

    `is_processor`: gaps and the costs that the engine learns are processor time, for a machine that has other work.
    """
    timer = SimpleNamespace(perf_counter=time.process_time if is_processor else time.perf_counter)
    with patch.object(step, "time", timer):  # what the engine takes the time of its passes with
        return _run(model, live, file_tokens, budget, path) | {"processor_time": is_processor}


def _run(
    model: Model, live: int, file_tokens: int, budget: int, path: str, share: float = 1.75
) -> dict[str, Any]:  # fmt: skip
    """The target is `share` times the 99th percentile of the gaps alone: a little less than what is promised."""
    text = Text(model)
    result: dict[str, Any] = {"live": live, "file_tokens": file_tokens, "budget": budget}
    alone: list[float] = []
    speakers = Speakers(Engine(model, "streaming-llm", budget, rows=live + 1, path=path), live, text)
    result["path"] = speakers.engine.runner.now
    speakers.measure(30)
    alone += speakers.measure(200)
    free, _ = _beside(speakers, speakers.engine.open(), text.take(file_tokens // 10))
    alone += speakers.measure(200)
    speakers.engine.close()
    target = share * spread(alone)["p99"]
    engine = Engine(model, "streaming-llm", budget, rows=live + 1, targets=Targets(between=target), path=path)
    speakers = Speakers(engine, live, text)
    learner = engine.open()
    learner.append(text.take(2_000))
    for _ in range(60):  # costs are learned
        speakers.go_on()
    learner.close()
    assert engine.controller is not None
    fixed, per_token = engine.controller.costs.reading.coefficients
    say(f"learned: {engine.controller.costs.answers(live) * 1e3:.1f} ms for {live} answers, {fixed * 1e3:.1f} ms + "
        f"{per_token * 1e3:.3f} ms per token that is read beside them")  # fmt: skip
    alone += speakers.measure(200)
    held, seconds = _beside(speakers, engine.open(), text.take(file_tokens))
    alone += speakers.measure(200)
    engine.close()
    result |= {
        "target_ms": target, "alone": spread(alone), "without_targets": spread(free), "with_targets": spread(held),
        "file_seconds": seconds, "file_tokens_per_second": file_tokens / seconds, "gaps": len(held),
    }  # fmt: skip
    for name in ("without_targets", "with_targets"):
        result[f"p99_times_alone_{name}"] = result[name]["p99"] / result["alone"]["p99"]
    names = ("alone", "without_targets", "with_targets")
    rows = [[name, *(f"{result[name][q]:.1f} ms" for q in ("p50", "p99"))] for name in names]
    for row, name in zip(rows, names):
        row.append(f"{result[name]['p99'] / result['alone']['p99']:.2f}")
    say(table([f"between tokens, {live} live", "p50", "p99", "p99 / alone"], rows))
    say(f"{file_tokens:,} tokens were read beside them in {seconds:.0f} s, with a target of {target:.1f} ms "
        f"({result['path']})")  # fmt: skip
    return result
