"""Goodput: how many requests keep their promises when memory is short, first-come against past-future admission?

A memory that grows and a device that holds about forty answers under way, as in the paper (arXiv:2507.10150): with a
handful of them no forecast of their sum can be good.  Requests arrive at random; nobody knows how long their answers
will be (the reader goes away after a length of its own; `max_new` is far above it).  A request keeps its promises if
its first token comes within `first` seconds and no gap between two tokens is longer than `between`.  An eviction takes
the memory of an answer under way; it is harmful if that answer then breaks its promise of gaps.  The clock moves by
stated costs of a step, not by real time, and the model's pass is left out (its answers are one word again and again):
only the plan is measured, and the result is the same on every machine.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bench.report import say, table
from bench.serving.common import Text, leave_out_the_model
from penstock.core import SimulatedClock
from penstock.engine import POLICIES, Answer, Engine, PastFuture, Policy
from penstock.models.load import Model

FIXED, PER_TOKEN, PER_SWAP = 0.006, 0.00025, 0.002  # seconds of a step, of each of its tokens, of a row moved


def _requests(count: int, rate: float, seed: int) -> list[tuple[float, int, int]]:
    """(arrival, tokens of the prompt, tokens until its reader goes)"""
    draw, at, out = random.Random(seed), 0.0, []
    for _ in range(count):
        at += draw.expovariate(rate)
        out.append((at, round(draw.uniform(20, 80)), min(400, max(8, round(draw.lognormvariate(4.6, 0.6))))))
    return out


def _serve(
    model: Model, policy: str, requests: list[tuple[float, int, int]], capacity: int, first: float, between: float
) -> dict[str, Any]:
    clock, text = SimulatedClock(), Text(model)
    per_entry = sum(layer.entry_bytes(model.attached.geometry.dtype) for layer in model.attached.geometry.layers)
    rule: Policy = PastFuture() if policy == "past-future" else POLICIES[policy]()
    for _, _, length in _requests(100, 1.0, seed=99):
        rule.ended(length)  # answers of the day before
    engine = Engine(
        model, "dense", None, rows=96, policy=rule, clock=clock, device=capacity * per_entry, quantum=1, ram="8GiB"
    )
    leave_out_the_model(engine)
    waiting = list(requests)
    open_: dict[str, tuple[Answer, int]] = {}
    asked: dict[str, float] = {}
    last: dict[str, float] = {}
    worst: dict[str, float] = {}
    began: dict[str, float] = {}
    evicted: Counter[str] = Counter()
    most = tokens = 0
    while waiting or open_:
        while waiting and waiting[0][0] <= clock.now():
            at, prompt, length = waiting.pop(0)
            session = engine.open(f"r{len(asked):04}")
            session.append(text.take(prompt))
            asked[session.id] = at
            open_[session.id] = (session.ask(max_new=400), length)
        if not open_:
            clock.time = waiting[0][0]
            continue
        speaking = {id for id in open_ if engine[id].speaking is not None}
        stepped = engine.step()
        moved = len(stepped.demoted) + len(stepped.promoted)
        clock.sleep(FIXED + PER_TOKEN * stepped.tokens + PER_SWAP * moved)
        now = clock.now()
        evicted.update(speaking & set(stepped.demoted))
        most = max(most, sum(s.core.tokens for s in engine.rows.taken))
        tokens += len(stepped.decoded)
        for id in list(open_):
            answer, length = open_[id]
            if answer.tokens and id not in began:
                began[id] = last[id] = now
                worst[id] = 0.0
            elif id in stepped.decoded:
                worst[id], last[id] = max(worst[id], now - last[id]), now
            if answer.tokens >= length:
                answer.cancel()
            if answer.finish is not None:
                engine[id].close()
                del open_[id]
    engine.close()
    kept = [id for id in asked if began[id] - asked[id] <= first and worst[id] <= between]
    return {
        "attainment": len(kept) / len(asked), "goodput_per_second": len(kept) / clock.now(), "seconds": clock.now(),
        "late_first": sum(began[id] - asked[id] > first for id in asked),
        "long_gap": sum(worst[id] > between for id in asked),
        "evictions": evicted.total(), "harmful_evictions": sum(n for id, n in evicted.items() if worst[id] > between),
        "most_entries": most, "tokens": tokens,
    }  # fmt: skip


def run(
    model: Model, count: int, rates: Sequence[float], capacity: int, first: float, between: float
) -> dict[str, Any]:
    """The same requests under both policies, at several loads."""
    result: dict[str, Any] = {
        "requests": count, "capacity_entries": capacity, "first_seconds": first, "between_seconds": between,
        "costs": {"fixed": FIXED, "per_token": PER_TOKEN, "per_swap": PER_SWAP},
    }  # fmt: skip
    rows = []
    for rate in rates:
        requests = _requests(count, rate, seed=0)
        at = {name: _serve(model, name, requests, capacity, first, between) for name in ("first-come", "past-future")}
        best = at["first-come"]["goodput_per_second"]
        for policy, r in at.items():
            r["times_goodput"] = r["goodput_per_second"] / max(1e-9, best)
            rows.append([
                f"{rate:g}", policy, f"{r['attainment']:.1%}", f"{r['goodput_per_second']:.2f}",
                f"{r['times_goodput']:.2f}", f"{r['late_first']}", f"{r['long_gap']}", f"{r['evictions']}",
                f"{r['harmful_evictions']}",
            ])  # fmt: skip
        result[f"{rate:g}"] = at
    heads = [
        "requests/s", "admission", "kept promises", "goodput/s", "times", "late first", "long gap", "evictions",
        "harmful",
    ]  # fmt: skip
    say(table(heads, rows))
    return result
