"""Time to first token: a context that streams in while it is fetched, against the same context sent when it is whole.

The shape of a crawl: pages of uneven size arrive at uneven moments over about ten seconds per request, several requests
at once.  The clock moves by the real time of the engine's steps, so that waiting for pages takes no time here.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from bench.report import say, table
from bench.serving.common import Paced, Text, spread
from penstock.core import SimulatedClock
from penstock.engine import Answer, Engine, EngineSession
from penstock.models.load import Model


@dataclass(frozen=True)
class Page:
    """Tokens of a request that arrive at a moment (seconds)."""

    at: float
    request: int
    tokens: int
    is_last: bool


def trace(requests: int, pages: int, seconds: float, tokens: int, apart: float, seed: int = 0) -> list[Page]:
    """Pages by time; sizes and gaps are log-normal, scaled to `tokens` and `seconds` per request."""
    draw = random.Random(seed)
    out: list[Page] = []
    for request in range(requests):
        sizes = [draw.lognormvariate(0, 0.6) for _ in range(pages)]
        gaps = [draw.lognormvariate(0, 0.8) for _ in range(pages)]
        at = request * apart
        for i, (size, gap) in enumerate(zip(sizes, gaps)):
            at += gap * seconds / sum(gaps)
            out.append(Page(at, request, max(1, round(size * tokens / sum(sizes))), i == pages - 1))
    return sorted(out, key=lambda page: page.at)


def _times(model: Model, pages: list[Page], budget: int, streams: bool) -> list[float]:
    clock, text = SimulatedClock(), Text(model)
    paced = Paced(Engine(model, "streaming-llm", budget, rows=8, clock=clock), clock)
    sessions: dict[int, EngineSession] = {}
    held: dict[int, list[int]] = {}
    answers: list[Answer] = []
    for page in pages:
        paced.until(page.at)
        session = sessions.setdefault(page.request, paced.engine.open())
        tokens = text.take(page.tokens)
        if streams:
            session.append(tokens)
        else:
            held.setdefault(page.request, []).extend(tokens)
        if page.is_last:
            if not streams:
                session.append(held[page.request])
            answer = session.ask(max_new=8)
            answer.asked = page.at  # the input was whole then, also if the step under way ended a little later
            answers.append(answer)
    while paced.step():
        pass
    first = list(paced.engine.cadence.first)
    assert len(first) == len(answers), "every request got its answer"
    paced.engine.close()
    return first


def run(model: Model, requests: int, pages: int, seconds: float, tokens: int, budget: int) -> dict[str, Any]:
    """The same trace both ways."""
    plan = trace(requests, pages, seconds, tokens, apart=seconds / 3)
    result: dict[str, Any] = {
        "requests": requests, "pages": pages, "seconds": seconds, "tokens": tokens, "budget": budget,
        "last_page_tokens": [p.tokens for p in plan if p.is_last],
    }  # fmt: skip
    for name, streams in (("streamed", True), ("whole", False)):
        result[name] = spread(_times(model, plan, budget, streams))
    result["times_better"] = {q: result["whole"][q] / result["streamed"][q] for q in ("p50", "p99")}
    rows = [[name, *(f"{result[name][q]:.0f} ms" for q in ("p50", "p99"))] for name in ("streamed", "whole")]
    rows.append(["times better", *(f"{result['times_better'][q]:.1f}" for q in ("p50", "p99"))])
    say(table(["time to first token", "p50", "p99"], rows))
    return result
