"""Read or write: how much of a target may be written when so much of a source has been read.  Pure values.

A policy is asked after every read, with what the writer would write now (a hypothesis continues what was written, so a
policy takes nothing back).  `WaitK` counts; `LocalAgreement` and `Hold` look at hypotheses.  Units are the caller's:
words or tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Protocol

from penstock.errors import UsageError

Units = tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """What a policy decides on."""

    read: int  # units of the source
    finished: bool  # whether there will be no more
    hypotheses: tuple[Units, ...] = ()  # whole targets, newest last: after each of the last reads


class Policy(Protocol):
    """`keeps`: how many hypotheses it looks at; 0: none is made, the target is written unit by unit."""

    @property
    def keeps(self) -> int: ...

    def allows(self, seen: Seen) -> int | None:
        """How many units of the target may stand written now, from its beginning; None: all that there are."""


@dataclass(frozen=True)
class WaitK:
    """Unit i waits for min(k + i - 1 - floor(c i), all) of the source (arXiv:1810.08398); c is the `catch_up`."""

    k: int = 5
    catch_up: float = 0.0
    keeps: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 <= self.catch_up < 1:
            raise UsageError(f"wait-k cannot have k={self.k}, catch_up={self.catch_up}: give k from 1 and 0 <= c < 1.")

    def waits_for(self, i: int) -> int:
        """Units of the source before unit i of the target (from 1), if there are as many."""
        return max(1, self.k + i - 1 - int(self.catch_up * i))

    def allows(self, seen: Seen) -> int | None:
        if seen.finished:
            return None
        i = max(0, seen.read - self.k)  # at least so many
        while self.waits_for(i + 1) <= seen.read:
            i += 1
        return i


@dataclass(frozen=True)
class LocalAgreement:
    """The prefix on which the last `n` hypotheses agree; n = 1 writes every hypothesis at once."""

    n: int = 2

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"local agreement of {self.n} hypotheses cannot be: give 1 or more.")

    @property
    def keeps(self) -> int:
        return self.n

    def allows(self, seen: Seen) -> int | None:
        if seen.finished:
            return None
        if len(seen.hypotheses) < self.n:
            return 0
        return common(seen.hypotheses[-self.n :])


@dataclass(frozen=True)
class Hold:
    """All of the newest hypothesis but its last `n` units."""

    n: int = 3
    keeps: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.n < 0:
            raise UsageError(f"{self.n} units cannot be held back: give 0 or more.")

    def allows(self, seen: Seen) -> int | None:
        return None if seen.finished else max(0, len(seen.hypotheses[-1]) - self.n)


def common(sequences: Sequence[Units]) -> int:
    """Units on which all sequences agree from their beginning."""
    return next((i for i, units in enumerate(zip(*sequences)) if len(set(units)) > 1), min(map(len, sequences)))


def parse_policy(text: str) -> Policy:
    """`wait-5`, `la-2` or `hold-3`."""
    kinds = {"wait": WaitK, "la": LocalAgreement, "hold": Hold}
    name, _, number = text.strip().lower().rpartition("-")
    if name not in kinds or not number.isdecimal():
        raise UsageError(f"unknown policy {text!r}: choose wait-5, la-2 or hold-3, with any number.")
    policy: Policy = kinds[name](int(number))
    return policy


def erasure(shown: Sequence[Units]) -> float:
    """Units taken back from what was shown, update by update, per unit of the last one; 0 for any policy here."""
    gone = sum(len(before) - common([before, after]) for before, after in pairwise(shown))
    return gone / max(1, len(shown[-1]))


def lagging(delays: Sequence[int], source: int, target: int | None = None) -> float:
    """Average lagging: by how many source units an ideal, even writer would have been ahead (arXiv:1810.08398).

    `delays`: source units read before each unit of the target.  `target`: the length that the ideal writer writes, by
    default what was written (LAAL is the larger of that and a reference).
    """
    if not delays:
        return 0.0
    if delays[0] > source:
        return float(delays[0])
    last = next((i for i, d in enumerate(delays, 1) if d >= source), len(delays))
    step = source / (target or len(delays))
    return sum(d - i * step for i, d in enumerate(delays[:last])) / last
