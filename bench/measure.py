"""How are contestants compared fairly? One short visit each, round after round, so that a disturbance hits all alike.

A round visits every contestant once, each time starting with another one; a visit takes a few steps after an untimed
lead-in step (none for steps of more than `longest_lead` seconds), and its value is the median step (plus the amortised
share of a rarer event). Medians and spread are taken over rounds; a ratio is the ratio of medians, its spread that of
the ratios inside single rounds. A slow contestant stops after its share of time, with at least `least` rounds.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bench.peers.client import Contestant, Failed
from bench.peers.protocol import Skip

GOLDEN = 0.618034  # multiples of it, modulo one, cover a cycle evenly at any count


@dataclass(frozen=True)
class Plan:
    """How long to measure."""

    rounds: int = 15
    least: int = 3
    visit_seconds: float = 0.4  # aim of one visit
    most_steps: int = 8
    longest_lead: float = 3.0
    share_seconds: float = 30.0  # of one contestant in one cell


@dataclass
class Series:
    """The values of one contestant in one cell, one per round, in seconds."""

    rounds: dict[int, float] = field(default_factory=dict)
    spent: float = 0.0

    @property
    def values(self) -> list[float]:
        return list(self.rounds.values())

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def record(self) -> dict[str, Any]:
        """For the JSON document; milliseconds."""
        low, high = spread(self.values)
        return {
            "median_ms": 1e3 * self.median,
            "p10_ms": 1e3 * low,
            "p90_ms": 1e3 * high,
            "rounds": len(self.rounds),
        }


def quantile(values: Iterable[float], at: float) -> float:
    """Linear interpolation between the sorted values."""
    ordered = sorted(values)
    place = at * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The 10th and the 90th percentile."""
    return quantile(values, 0.1), quantile(values, 0.9)


def ratio(peer: Series, ours: Series) -> dict[str, float]:
    """How many times slower the peer is: ratio of medians, with the spread over the rounds that both took part in."""
    shared = [peer.rounds[index] / ours.rounds[index] for index in peer.rounds if index in ours.rounds]
    low, high = spread(shared) if shared else (float("nan"), float("nan"))
    return {"ratio": peer.median / ours.median, "p10": low, "p90": high}


class Visit(NamedTuple):
    """How many steps a visit takes, the lead-in apart."""

    lead: int
    steps: int

    @classmethod
    def of(cls, step_seconds: float, plan: Plan) -> Visit:
        """As many timed steps as fit the aim of a visit, at least one."""
        fitting = round(plan.visit_seconds / max(step_seconds, 1e-6))
        return cls(int(step_seconds < plan.longest_lead), max(1, min(plan.most_steps, fitting)))


def interleave(
    contestants: Sequence[Contestant],
    visit: Callable[[Contestant, int, float], dict[str, Any]],
    plan: Plan,
    problem: Callable[[str, str], None],
) -> dict[str, Series]:
    """Visit all contestants round after round.

    `visit(contestant, steps, phase)` returns the reply with `seconds` of every step and `amortised`.
    `problem(name, message)` hears of contestants that skip or break; they take no further part in this cell.
    """
    active = list(contestants)
    series = {contestant.name: Series() for contestant in active}
    visits: dict[str, Visit] = {}
    for index in range(-1, plan.rounds):  # round -1 warms up and finds out how long a step takes
        turn = index % len(active) if active else 0
        for contestant in active[turn:] + active[:turn]:
            name, own = contestant.name, series[contestant.name]
            if len(own.rounds) >= plan.least and own.spent > plan.share_seconds:
                continue
            try:
                planned = visits.get(name, Visit(lead=1, steps=1))
                reply = visit(contestant, planned.lead + planned.steps, (max(index, 0) + 0.5) * GOLDEN % 1.0)
            except (Skip, Failed) as reason:
                problem(name, str(reason))
                active.remove(contestant)
                series.pop(name)
                continue
            seconds: list[float] = reply["seconds"]
            timed = seconds[planned.lead :]
            if index < 0:
                visits[name] = Visit.of(timed[-1], plan)
                continue
            own.spent += sum(seconds)
            own.rounds[index] = statistics.median(timed) + reply["amortised"]
        print(f"\r  round {index + 1}/{plan.rounds}", end="", file=sys.stderr, flush=True)
    print("\r" + " " * 24 + "\r", end="", file=sys.stderr)
    return {name: own for name, own in series.items() if own.rounds}
