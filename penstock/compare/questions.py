"""Which fact is asked where.  Distances are in tokens, from the first token of a statement to the question about it.

    bins      0 .. 1/4 .. 1/2 .. 1 .. 2 .. 5 .. 10 .. 20 .. 50 budgets, as far as the stream reaches, or fewer and
              wider ones in a short stream; or [0.9 D, 1.1 D) around each distance that was named
    question  asked on a fork at a place that is a multiple of the grid, in the last three quarters of the stream

Every fact is asked at most once, every bin has at least `LEAST` questions or is left out.  The plan depends on the
stream and the budget alone, so every method is asked the same.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from penstock.compare.stream import Placed, Stream
from penstock.errors import InputError, UsageError

MULTIPLES: tuple[tuple[float, ...], ...] = (  # of the budget: the finest that a stream has questions for is taken
    (0.25, 0.5, 1, 2, 5, 10, 20, 50),
    (0.5, 1, 2, 5, 10, 20, 50),
    (1, 2, 5, 10, 50),
    (1, 2, 10, 50),
    (1, 5, 50),
    (1, 50),
)
LEAST = 20  # questions per bin
USUAL = 32
_SPREAD = 0.1  # of a named distance, to both sides
_TRIES = 64


@dataclass(frozen=True)
class Bin:
    """Distances [low, high) in tokens."""

    low: int
    high: int

    def __contains__(self, distance: int) -> bool:
        return self.low <= distance < self.high


@dataclass(frozen=True)
class Question:
    """Ask about a fact when `at` tokens have been read."""

    at: int
    fact: Placed
    bin: int  # index of its bin

    @property
    def distance(self) -> int:
        return self.at - self.fact.start


@dataclass(frozen=True)
class Plan:
    """The questions of one budget, in the order in which they are asked."""

    budget: int  # entries
    bins: tuple[Bin, ...] = ()
    questions: tuple[Question, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def digest(self) -> str:
        """A hash of what is asked where."""
        text = repr((self.budget, self.bins, [(q.at, q.fact.start, q.bin) for q in self.questions]))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def recall(self, hits: Sequence[bool | None]) -> list[dict[str, float | int]]:
        """Per bin the share of right answers; `hits` follows `questions`."""
        out: list[dict[str, float | int]] = []
        for index, each in enumerate(self.bins):
            found = [bool(hit) for hit, question in zip(hits, self.questions) if question.bin == index]
            out.append({"from": each.low, "to": each.high, "recall": sum(found) / len(found), "n": len(found)})
        return out


def make_plan(
    stream: Stream, budget: int, distances: Sequence[int] = (), per_bin: int = USUAL, seed: int = 0
) -> Plan:  # fmt: skip
    """The questions for memories of `budget` entries; none for a stream without facts.

    Raises:
        InputError: a named distance, or every bin, has fewer than `LEAST` questions in this stream.
    """
    if per_bin < LEAST:
        raise UsageError(f"{per_bin} questions per distance say little: ask at least {LEAST}.")
    if not stream.facts:
        return Plan(budget)
    length = len(stream.ids)
    for distance in distances:
        if distance >= length:
            raise InputError(
                f"a distance of {distance:,} tokens is longer than the stream of {length:,}: "
                f"give --tokens {2 * distance} or a shorter distance."
            )
    choices = [_around(distances)] if distances else [_multiples(level, budget, stream) for level in MULTIPLES]
    wanted, taken = _finest(stream, choices, f"questions:{seed}:{budget}", per_bin)
    kept = [index for index in range(len(wanted)) if len(taken[index]) >= LEAST]
    lost = [wanted[index] for index in range(len(wanted)) if index not in kept]
    if not kept or (distances and lost):
        raise InputError(_too_few(lost[0], length, bool(distances)))
    notes = tuple(
        f"no recall for facts {each.low:,} to {each.high:,} tokens back: this stream has fewer than {LEAST} of them "
        "to ask for."
        for each in lost
    )
    questions = [Question(at, fact, kept.index(index)) for index in kept for at, fact in taken[index]]
    questions.sort(key=lambda q: (q.at, q.fact.start))
    return Plan(budget, tuple(wanted[index] for index in kept), tuple(questions), notes)


def _too_few(where: Bin, length: int, named: bool) -> str:
    other = "another distance" if named else "another budget"
    return (
        f"a stream of {length:,} tokens has fewer than {LEAST} questions about facts {where.low:,} to {where.high:,} "
        f"tokens back: give --tokens {max(2 * length, 2 * where.high, 2000)} or {other}."
    )


def _finest(
    stream: Stream, choices: Sequence[Sequence[Bin]], name: str, per_bin: int
) -> tuple[Sequence[Bin], dict[int, list[tuple[int, Placed]]]]:
    """The first choice of bins that all have questions enough, else the last; and what is asked in each."""
    for bins in choices:
        draw = _Draw(stream, random.Random(name))
        order = sorted(range(len(bins)), key=lambda i: -bins[i].high)  # the far ones have the least choice
        for index in order:
            draw.fill(index, bins[index], LEAST)
        if all(len(taken) == LEAST for taken in draw.taken.values()) or bins is choices[-1]:
            break
    for count in range(LEAST + 1, per_bin + 1):
        for index in order:
            draw.fill(index, bins[index], count)
    return bins, draw.taken


def _multiples(level: Sequence[float], budget: int, stream: Stream) -> list[Bin]:
    """The bins of a level that the stream reaches well; the last one ends with the stream."""
    edges = [0, *(max(1, round(multiple * budget)) for multiple in level)]
    length = len(stream.ids)
    last = stream.facts[min(len(stream.facts), 2 * LEAST) - 1].start  # facts before it can be asked for at the end
    far = [low for low in edges[1:-1] if low + last <= length]
    return [Bin(low, min(high, length)) for low, high in pairwise(edges) if low == 0 or low in far]


def _around(distances: Sequence[int]) -> list[Bin]:
    margins = [(distance, max(16, round(_SPREAD * distance))) for distance in sorted(set(distances))]
    return [Bin(max(0, distance - margin), distance + margin) for distance, margin in margins]


class _Draw:
    """Takes facts for bins, each once, spread over the distances of a bin and over the stream."""

    def __init__(self, stream: Stream, rng: random.Random) -> None:
        self.facts, self.length, self.rng = stream.facts, len(stream.ids), rng
        self.starts = [fact.start for fact in stream.facts]
        self.grid = max(16, min(4096, 1 << max(0, self.length // 256).bit_length() - 1))  # at least 256 places
        self.used: set[int] = set()  # indices of facts
        self.taken: dict[int, list[tuple[int, Placed]]] = {}
        self._empty: set[int] = set()  # bins without an unused fact

    def fill(self, index: int, where: Bin, count: int) -> None:
        """Up to `count` questions for a bin: by chance, and when that fails, by looking at every place."""
        taken = self.taken.setdefault(index, [])
        if index in self._empty:
            return
        for number in range(len(taken), count):
            found = self._by_chance(where, number % LEAST) or self._by_search(where)
            if found is None:
                self._empty.add(index)
                return
            at, fact = found
            self.used.add(fact)
            taken.append((at, self.facts[fact]))

    def _by_chance(self, where: Bin, number: int) -> tuple[int, int] | None:
        for _ in range(_TRIES):
            share = (number + self.rng.random()) / LEAST
            distance = where.low + int((where.high - where.low) * share)
            at = self._place(self.rng.randint(max(distance, self.length // 4), max(distance, self.length)))
            fact = self._nearest(at, at - distance, where)
            if fact is not None:
                return at, fact
        return None

    def _by_search(self, where: Bin) -> tuple[int, int] | None:
        places = list(range(self._place(max(where.low, self.length // 4)), self.length + 1, self.grid))
        self.rng.shuffle(places)
        for at in places:
            fact = self._nearest(at, at - (where.low + where.high) // 2, where)
            if fact is not None:
                return at, fact
        return None

    def _place(self, at: int) -> int:
        """The nearest place on the grid, within the stream."""
        return max(self.grid, min(round(at / self.grid), self.length // self.grid) * self.grid)

    def _nearest(self, at: int, start: int, where: Bin) -> int | None:
        """The unused fact that begins nearest to `start`, was stated whole before `at`, and stands in the bin."""
        first = bisect_left(self.starts, at - where.high + 1)
        last = bisect_left(self.starts, at - where.low + 1)
        fitting = (i for i in range(first, last) if i not in self.used and self.facts[i].end <= at)
        return min(fitting, key=lambda i: abs(self.starts[i] - start), default=None)
