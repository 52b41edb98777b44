"""Who goes first: policies by name, as pure functions of what each session wants.  They know no model and no memory.

A step is planned in two phases.  First the sessions that have something to do are put in order (here); then they
acquire rows and tokens in that order (plan.py).  A policy may also hold back sessions that would not fit for long.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar
from zlib import crc32

from penstock.errors import UnknownName


@dataclass(frozen=True)
class Candidate:
    """A session that has something to do.  Times are seconds on the engine's clock."""

    id: str
    arrived: float  # when its oldest waiting work came
    tokens: int = 1  # it could take in one step
    deadline: float = inf  # of its oldest work
    served: float = -inf  # when a step last served it
    decodes: bool = False  # an answer is under way: one token, with logits
    has_row: bool = False
    is_pinned: bool = False  # an open mark: must not leave its row before the mark is closed
    is_fresh: bool = False  # has its row for less than a quantum: is left in it
    held: int = 0  # entries of its memory now
    grown: int = 0  # tokens that its answer has so far
    most: int = 0  # tokens that its answer may have at most
    guesses: int = 0  # tokens that may be let in behind its next one, if there is room
    limit: int | None = None  # entries its memory never exceeds; None: grows
    waiting: int = 0  # tokens in its queue, in all


class Policy:
    """First come, first served: by the arrival of the oldest waiting work."""

    name: ClassVar[str] = "first-come"

    def order(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Most urgent first."""
        return sorted(candidates, key=lambda c: (c.arrived, c.id))

    def admit(self, ordered: list[Candidate], capacity: int | None) -> list[Candidate]:
        """Those that may have a row, in the same order; `capacity` in entries of all rows."""
        return ordered

    def ended(self, tokens: int) -> None:
        """An answer of so many tokens has ended."""


class EarliestDeadline(Policy):
    """By the deadline of the oldest work, then by arrival."""

    name = "earliest-deadline"

    def order(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        return sorted(candidates, key=lambda c: (c.deadline, c.arrived, c.id))


class LeastRecentlyServed(Policy):
    """Who has waited longest since a step served it."""

    name = "least-recently-served"

    def order(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        return sorted(candidates, key=lambda c: (c.served, c.arrived, c.id))


def peak(streams: Sequence[tuple[int, int]]) -> int:
    """The most entries held at once by streams of (entries now, entries still to come), one more each per step.

    A stream leaves when its last entry has come.  arXiv:2507.10150: sorted by what is to come, longest first,
    max over i of (to come of i) * i + entries now of the first i.
    """
    most = total = 0
    for i, (now, coming) in enumerate(sorted(streams, key=lambda s: -s[1]), 1):
        total += now
        most = max(most, coming * i + total)
    return most


class PastFuture(Policy):
    """First come, first served, admitted only if the predicted peak of memory fits.  arXiv:2507.10150

    The lengths of past answers predict those of the open ones, conditioned on what they already have; the worst of
    several draws counts.  Differs from the paper: an answer keeps its draws, because asking anew in every step is a
    lottery that anybody wins in the end; a bounded memory enters with what it can still grow, not with tokens.
    """

    name = "past-future"

    def __init__(self, window: int = 200, reserve: float = 0.05, seed: int = 0) -> None:
        self.reserve, self.seed = reserve, seed
        self._recent: deque[int] = deque(maxlen=window)
        self._sorted: list[int] = []

    def ended(self, tokens: int) -> None:
        if len(self._recent) == self._recent.maxlen:
            self._sorted.remove(self._recent[0])
        self._recent.append(tokens)
        insort(self._sorted, tokens)

    def predict(self, grown: int, most: int, draw: float) -> int:
        """Tokens an answer will have in all, drawn (0..1) from the past; at least one more than it has."""
        longer = [n for n in self._sorted[bisect_right(self._sorted, grown) :] if n < most]
        points = [grown + 1, *longer, max(most, grown + 1)] if not self._recent or not longer else longer
        at = draw * (len(points) - 1)
        low = int(at)
        high = min(low + 1, len(points) - 1)
        return round(points[low] + (points[high] - points[low]) * (at - low))

    def admit(self, ordered: list[Candidate], capacity: int | None) -> list[Candidate]:
        if capacity is None:
            return ordered
        running = [c for c in ordered if c.has_row]
        room, out, is_open = capacity * (1 - self.reserve), [], True
        for c in ordered:
            if c.has_row:
                out.append(c)
            elif is_open:
                is_open = not running or self._peak([*running, c]) < room
                if is_open:
                    running.append(c)
                    out.append(c)
        return out

    def _peak(self, streams: Sequence[Candidate]) -> int:
        draws = min(5, -(-200 // len(streams)))
        return max(peak([self._future(c, number) for c in streams]) for number in range(draws))

    def _future(self, c: Candidate, number: int) -> tuple[int, int]:
        draw = crc32(f"{self.seed} {number} {c.arrived} {c.id}".encode()) / (1 << 32)
        coming = self.predict(c.grown, c.most, draw) - c.grown if c.most else 0
        coming += 0 if c.decodes else c.waiting
        if c.limit is None:
            return c.held, coming
        # A bounded memory that is full stays as large until its stream leaves: it counts with all it will hold.
        return max(c.held, min(c.held + coming, c.limit)), 0


POLICIES = {policy.name: policy for policy in (Policy, EarliestDeadline, LeastRecentlyServed, PastFuture)}


def policy_of(name: str | Policy) -> Policy:
    """A policy by name, or as it is."""
    if isinstance(name, Policy):
        return name
    if name not in POLICIES:
        raise UnknownName("policy", name, POLICIES)
    return POLICIES[name]()
