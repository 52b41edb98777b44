"""How a step's work becomes passes of the model, and which rows change place for it.  Pure.

Answers of adjacent rows are read together in one batched attention; spans of many tokens are read one by one, in the
same pass.  So answers come first in a pass, and those that are scattered over the rows are brought together before,
with the fewest moves (arXiv:2305.13484):

    rows     . a . x a a      a: one token of an answer    x: another session    .: free
    moves    1 -> 3, x -> 1   or   1 -> 2, 4 -> 3, ...     the window [3, 6) costs one exchange, the others more
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Protocol, TypeVar

from penstock.core import Phase


class Item(Protocol):
    """What a pass needs to know of a session's work."""

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def phase(self) -> Phase: ...

    @property
    def row(self) -> int: ...


W = TypeVar("W", bound=Item)


def passes(works: Sequence[W], by_phase: bool) -> list[list[W]]:
    """The passes of a step, in order; `by_phase` for memories that care in which phase they are read.

    In a pass the answers of one token come first, by row, so that the memory reads adjacent ones as one batch.
    """
    ordered = sorted(works, key=lambda w: (not _is_single(w), w.row))
    if by_phase:
        return [p for phase in Phase if (p := [w for w in ordered if w.phase is phase])]
    return [ordered] if ordered else []


def _is_single(work: Item) -> bool:
    return work.phase is Phase.ANSWER and len(work.tokens) == 1


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
