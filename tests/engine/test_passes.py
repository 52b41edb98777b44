"""Passes and moves: every work once, and never more moves than the best there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core import Phase
from penstock.engine.passes import gather, passes

from .company import assert_whole, engine


@dataclass
class Item:
    phase: Phase
    tokens: list[int] = field(default_factory=lambda: [1])
    row: int = 0


@given(st.lists(st.tuples(st.sampled_from(Phase), st.integers(1, 3)), max_size=8), st.booleans())
def test_each_work_is_in_one_pass_and_answers_come_first(kinds: list[tuple[Phase, int]], by_phase: bool) -> None:
    works = [Item(phase, [1] * n, row) for row, (phase, n) in enumerate(kinds)]
    cut = passes(works[::-1], by_phase)
    assert sorted(map(id, works)) == sorted(id(w) for group in cut for w in group)
    assert all(cut)
    assert len(cut) <= 1 or by_phase
    for group in cut:
        assert len({w.phase for w in group}) == 1 or not by_phase
        single = [w.phase is Phase.ANSWER and len(w.tokens) == 1 for w in group]
        assert single == sorted(single, reverse=True)
        assert [w.row for w in group[: sum(single)]] == sorted(w.row for w in group[: sum(single)])


ROWS = 6


@given(st.sets(st.integers(0, ROWS - 1)), st.sets(st.integers(0, ROWS - 1)), st.sets(st.integers(0, ROWS - 1)))
def test_moves_gather_with_the_least_disturbance(single: set[int], others: set[int], fixed: set[int]) -> None:
    taken, fixed = single | others, fixed & (single | others)
    owner = {r: r for r in taken}
    moves = gather(single, taken, fixed, ROWS)
    cost = 0
    for move in moves:
        assert owner[move.source] not in fixed
        assert owner.get(move.to) not in fixed
        cost += 1 + (move.to in owner)
        here, there = owner.pop(move.source), owner.pop(move.to, None)
        owner[move.to] = here
        if there is not None:
            owner[move.source] = there
    assert sorted(owner.values()) == sorted(taken), "nobody is lost"
    where = sorted(row for row, of in owner.items() if of in single)
    possible = []
    for target in combinations(range(ROWS), len(single)):
        if len(target) > 1 and target[-1] - target[0] == len(target) - 1:
            out, holes = single - set(target), set(target) - single
            if not (out | holes) & fixed:
                possible.append(len(out) + len(holes & taken))
    if possible:
        assert where == list(range(where[0], where[0] + len(where)))
        assert cost == min(possible)
    else:
        assert not moves


@pytest.mark.parametrize("path", ["eager", "auto"])
def test_scattered_answers_stay_what_they_are_gathered_or_not(path: str) -> None:
    """PyTorch reads adjacent rows as one batch; the native step takes rows wherever they are."""
    e = engine(rows=5, budget=24, path=path)
    sessions = [e.open(f"s{i}") for i in range(5)]
    for i, session in enumerate(sessions):
        session.append("One line of text, and another. " * (i + 1))
    e.drain()
    sessions[2].append("More to read. " * 60)
    answers = [sessions[i].ask(max_new=12) for i in (0, 3, 4)]
    while e.stats().tokens_decoded < 6:
        e.step()
    rows = sorted(sessions[i].row for i in (0, 3, 4))  # type: ignore[type-var]
    assert (rows[2] == rows[0] + 2) == bool(e.rows.moves) == (e.runner.now == "eager")
    e.check()
    e.drain()
    assert all(a.text() for a in answers)
    for session in sessions:
        assert_whole(session)
