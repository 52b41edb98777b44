"""How a step's work becomes passes of the model, and which rows change place for it.  Pure.

Answers of adjacent rows are read together in one batched attention, whatever else the memory holds; spans of many
tokens are read one by one.  So answers go through the model by themselves as soon as they are a few, and those that are
scattered over the rows are brought together first, with the fewest moves (arXiv:2305.13484):

    rows     . a . x a a      a: one token of an answer    x: another session    .: free
    moves    1 -> 3, x -> 1   or   1 -> 2, 4 -> 3, ...     the window [3, 6) costs one exchange, the others more
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Protocol, TypeVar

from penstock.core import Phase

TOGETHER = 3  # answers from which a pass of their own beside reading pays (measured: two cores, shipped model)


class Item(Protocol):
    """What a pass needs to know of a session's work."""

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def phase(self) -> Phase: ...


W = TypeVar("W", bound=Item)


def passes(works: Sequence[W], by_phase: bool, together: int = TOGETHER) -> list[list[W]]:
    """The passes of a step, in order; `by_phase` for memories that care in which phase they are read."""
    if by_phase:
        return [p for phase in Phase if (p := [w for w in works if w.phase is phase])]
    single = [w for w in works if w.phase is Phase.ANSWER and len(w.tokens) == 1]
    rest = [w for w in works if not (w.phase is Phase.ANSWER and len(w.tokens) == 1)]
    if rest and len(single) >= together:
        return [single, rest]
    return [list(works)] if works else []


@dataclass(frozen=True)
class Move:
    """The session in row `source` goes to row `to`; if that is taken, the two change places."""

    source: int
    to: int


def gather(single: Set[int], taken: Set[int], fixed: Set[int], rows: int) -> list[Move]:
    """The fewest moves that make the rows in `single` adjacent; none if they are, or if `fixed` rows forbid it.

    `taken` are the rows with a session, `fixed` those whose session must not move.
    """
    count = len(single)
    if count < 2 or max(single) - min(single) == count - 1:
        return []
    best: tuple[int, int] | None = None
    for first in range(rows - count + 1):
        window = range(first, first + count)
        outside = [r for r in single if r not in window]
        holes = [r for r in window if r not in single]
        if any(r in fixed for r in outside) or any(r in fixed for r in holes):
            continue
        cost = len(outside) + sum(r in taken for r in holes)
        if best is None or cost < best[0]:
            best = cost, first
    if best is None:
        return []
    window = range(best[1], best[1] + count)
    outside = sorted(r for r in single if r not in window)
    holes = sorted((r for r in window if r not in single), key=lambda r: (r in taken, r))
    return [Move(source, to) for source, to in zip(outside, holes)]
