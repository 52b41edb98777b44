"""evidence: answer when the evidence has been seen; until then look again later, less and less often.  arXiv:2506.18472
Differs from the paper: whether the evidence is there is the model's own yes against no; when to look again is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from penstock.registry import check_range
from penstock.triggers.base import Sign, Signs, Trigger


@dataclass(frozen=True)
class _State:
    """One open question."""

    at: float = float("-inf")  # stream time of the next look
    wait: float = 0.0  # seconds between the last two looks
    is_open: bool = True  # not answered since the evidence came


@dataclass(frozen=True)
class Evidence(Trigger):
    """Each request is an open question.  It is looked at every `every` seconds; each look that finds no evidence makes
    the next one `backoff` times as late, up to `longest` seconds.  Evidence of at least `threshold` is answered once;
    when it has gone, the question is open again.
    """

    name: ClassVar[str] = "evidence"
    title: ClassVar[str] = "AViLA's check: is the evidence in what was seen? answer, wait, or look again later"
    source: ClassVar[str] = "arXiv:2506.18472"
    differs: ClassVar[str] = "evidence is the model's own yes against no; looks that find none become rarer"
    needs: ClassVar[frozenset[Sign]] = frozenset({"evidence"})
    each: ClassVar[bool] = True

    threshold: float = 0.5
    every: float = 0.5
    backoff: float = 1.5
    longest: float = 2.0

    def __post_init__(self) -> None:
        check_range(self, threshold=(0.0, 1.0), every=(0.0, 1e9), backoff=(1.0, 1e3), longest=(0.0, 1e9))

    def start(self) -> _State:
        return _State()

    def looks(self, state: _State, t: float) -> bool:
        return t >= state.at - 1e-6

    def step(self, state: _State, signs: Signs) -> tuple[_State, bool]:
        if not self.looks(state, signs.t):
            return state, False
        if self.sign(signs, "evidence") >= self.threshold:
            return _State(signs.t + self.every, self.every, False), state.is_open
        wait = min(max(self.every, state.wait * self.backoff), max(self.longest, self.every))
        return _State(signs.t + wait, wait, True), False


def offset(t: float, start: float, end: float) -> float:
    """By how many seconds an answer at t misses its evidence [start, end]: below 0 before, above it after."""
    return min(0.0, t - start) + max(0.0, t - end)
