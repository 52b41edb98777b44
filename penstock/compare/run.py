"""One pass: a memory reads the stream; where the plan says so, a fork of it is asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from penstock.compare.questions import Plan, Question
from penstock.compare.stream import Stream
from penstock.core import Phase
from penstock.meter import percentile
from penstock.methods import Method
from penstock.models.load import Model
from penstock.session import Session

_OUTLIERS = 0.99  # a step slower than this share of all steps counts as this one in the slope
_FEW = 16  # steps that a slope needs


class Stopped(Exception):
    """Somebody ended the comparison: the pass is not finished and counts for nothing."""


@dataclass
class Pass:
    """What one pass measured so far."""

    tokens: int = 0
    seconds: float = 0.0  # of reading
    wall: float = 0.0  # seconds of the whole pass, questions included
    steps: list[tuple[int, int, float]] = field(default_factory=list)  # position, tokens, seconds
    ask_seconds: list[float] = field(default_factory=list)  # from a question to the first token of its answer
    hits: dict[Question, bool] = field(default_factory=dict)
    fetched: dict[Question, bool] = field(
        default_factory=dict
    )  # archives: with the right blocks always among the chosen
    device: int = 0  # peaks, in bytes
    ram: int = 0
    disk: int = 0
    nll_mean: float | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def recall(self) -> float | None:
        """Over all questions so far."""
        return sum(self.hits.values()) / len(self.hits) if self.hits else None

    def moment(self) -> Pass:
        """The counters alone, small enough to be sent often."""
        return replace(self, steps=[], ask_seconds=[])

    def look(self, memory: Any) -> None:
        """Keep the highest bytes of each tier."""
        self.device = max(self.device, memory.nbytes)
        self.ram = max(self.ram, getattr(memory, "ram_bytes", 0))
        self.disk = max(self.disk, getattr(memory, "disk_bytes", 0))

    def whole(self) -> tuple[list[float], list[float]]:
        """Positions and seconds of the longest steps (those that a question cut short do not count)."""
        most = max((tokens for _, tokens, _ in self.steps), default=0)
        kept = [(at, seconds) for at, tokens, seconds in self.steps if tokens == most]
        return [float(at) for at, _ in kept], [seconds for _, seconds in kept]

    def row(self, plan: Plan) -> dict[str, Any]:
        """The columns of a result row that one plan's questions give."""
        positions, times = self.whole()
        asked = [self.hits[question] for question in plan.questions]
        return {
            "recall": plan.recall(asked),
            **({"oracle_fetch": plan.recall([self.fetched[q] for q in plan.questions])} if self.fetched else {}),
            "nll_mean": self.nll_mean,
            "bytes": {"device": self.device, "ram": self.ram, "disk": self.disk},
            "step_ms": {
                "p50": percentile(times, 0.5) * 1e3,
                "p99": percentile(times, 0.99) * 1e3,
                "slope_per_million": slope(positions, times, after=2 * plan.budget),
            },
            "ingest_tokens_per_second": self.tokens_per_second or None,
            "first_token_ms": percentile(self.ask_seconds, 0.5) * 1e3,
            "tokens": self.tokens,
            "questions": len(asked),
        }


def slope(positions: Sequence[float], seconds: Sequence[float], after: float = 0.0) -> float:
    """Least squares slope of step latency against position, in milliseconds per million tokens.

    The steps before `after` fill the memory and are left out where enough remain.  Steps that the machine delayed count
    as slow as the slowest hundredth: one pause of the machine is not a property of a memory.
    """
    points = [(x, y) for x, y in zip(positions, seconds) if x >= after]
    if len(points) < _FEW:
        points = list(zip(positions, seconds))
    if len(points) < 2:
        return math.nan
    ceiling = percentile([y for _, y in points], _OUTLIERS)
    x = torch.tensor([x for x, _ in points], dtype=torch.float64)
    y = torch.tensor([min(y, ceiling) for _, y in points], dtype=torch.float64)
    x -= x.mean()
    spread = float((x * x).sum())
    return float((x * (y - y.mean())).sum()) / spread * 1e3 * 1e6 if spread else math.nan


def read(
    model: Model, method: Method, budget: int | None, stream: Stream, plans: Sequence[Plan], chunk: int,
    tick: Callable[[Pass], None] = lambda _: None,
) -> Pass:  # fmt: skip
    """Read the whole stream and ask every plan's questions on forks; `tick` is called between steps and may raise."""
    session = Session(model, method, budget, chunk=chunk, path="eager", measure=True)
    found = Pass()
    try:
        _read(session, stream, plans, found, tick)
    finally:
        session.runner.close()
    return found


def _read(
    session: Session, stream: Stream, plans: Sequence[Plan], found: Pass, tick: Callable[[Pass], None]
) -> None:  # fmt: skip
    waiting = sorted((q for plan in plans for q in plan.questions), key=lambda q: q.at)[::-1]
    while found.tokens < len(stream.ids):
        until = min(len(stream.ids), waiting[-1].at if waiting else len(stream.ids))
        tokens = stream.ids[found.tokens : min(until, found.tokens + session.chunk)]
        began = time.perf_counter()
        session.ingest(tokens)
        took = time.perf_counter() - began
        found.steps.append((found.tokens, len(tokens), took))
        found.tokens += len(tokens)
        found.seconds += took
        found.look(session._memory)
        found.nll_mean = session.meter.nll_mean
        while waiting and waiting[-1].at == found.tokens:
            question = waiting.pop()
            found.hits[question] = _ask_fork(session, question, found)
            if any(c.tiers for c in session._memory.cascades):
                found.fetched[question] = _ask_fork(session, question, found, fetch=True)
        tick(found)


def _ask_fork(session: Session, question: Question, found: Pass, fetch: bool = False) -> bool:
    """Whether a fork answers right; with `fetch`, one whose archive always brings the blocks of the statement too."""
    fork = session.fork()
    fork.measure = False
    if fetch:
        fork._memory.wanted = range(question.fact.start, question.fact.end)
    fork.chunk = max(fork.chunk, len(question.fact.question))
    try:
        right, seconds = ask(fork, question.fact.question, question.fact.answer)
    finally:
        fork.runner.close()
    if not fetch:
        found.ask_seconds.append(seconds)
    return right


def ask(session: Session, question: Sequence[int], answer: Sequence[int]) -> tuple[bool, float]:
    """Whether greedy decoding gives exactly `answer`, and the seconds until its first token was known."""
    began = time.perf_counter()
    session.ingest(question, Phase.ASK)
    assert session.logits is not None
    token = int(session.logits.argmax())
    seconds = time.perf_counter() - began
    for index, right in enumerate(answer):
        if token != right:
            return False, seconds
        if index + 1 < len(answer):
            token = int(session.decode(token).argmax())
    return True, seconds
