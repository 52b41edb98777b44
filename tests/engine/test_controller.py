"""The split of a step's time: the most that the target allows, no starving, no trembling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine import Targets
from penstock.engine.controller import Controller, Costs, affordable
from penstock.errors import UsageError

from .company import TEXT, assert_whole, engine


def costs(fixed: float, per_token: float, answer: float) -> Costs:
    out = Costs()
    for n in (4, 16, 64, 8, 32) * 6:
        out.add(n, 0, fixed + per_token * n)
    for rows in (1, 4, 8):
        out.add(0, rows, answer * (1 + rows / 8))
    return out


@given(
    st.floats(0, 0.01), st.floats(1e-5, 1e-3), st.floats(1e-4, 0.02), st.floats(0.001, 0.1),
    st.integers(1, 10), st.integers(1, 256),
)  # fmt: skip
def test_the_split_is_the_largest_that_keeps_the_target(
    fixed: float, per_token: float, answer: float, seconds: float, rows: int, most: int
) -> None:
    known = costs(fixed, per_token, answer)
    beside = known.answers(rows)
    n = affordable(known, rows, seconds, most)
    assert 0 <= n <= most
    slack = 1e-6 + 1e-3 * seconds
    if n:
        assert beside + fixed + per_token * n <= seconds + slack
    if n < most:
        assert beside + fixed + per_token * (n + 1) > seconds - slack - per_token


def test_small_changes_of_the_costs_do_not_move_the_split() -> None:
    control = Controller(Targets(between=20))
    control.costs = costs(0.002, 1e-4, 0.004)
    first = control.tokens(4, 999, 256)
    control.costs.answering[4] *= 1.05
    assert control.tokens(4, 999, 256) == first
    control.costs.answering[4] *= 1.5
    assert control.tokens(4, 999, 256) < first


def test_reading_is_never_starved_and_answers_alone_cost_nothing() -> None:
    control = Controller(Targets(between=1, least=3, patience=4))
    control.costs = costs(0.01, 1e-3, 0.01)
    given_out = [control.tokens(4, 999, 256) for _ in range(8)]
    assert given_out == [0, 0, 0, 3] * 2
    assert control.tokens(0, 999, 256) == 256


def test_a_question_in_danger_gets_what_was_held_in_reserve() -> None:
    control = Controller(Targets(between=20, first=100))
    control.costs = costs(0.002, 1e-4, 0.004)
    for _ in range(40):
        control.settle(1, 1, 0.5)
    lean = control.tokens(4, 999, 256)
    assert control.tokens(4, 999, 256, late=0.09) > lean


def test_an_engine_with_targets_reads_a_little_beside_answers() -> None:
    e = engine(rows=3, targets=Targets(between=1e-3, least=2, patience=3), chunk=32)
    speaker, reader = e.open(), e.open()
    speaker.append(TEXT[:100])
    e.drain()
    answer = speaker.ask(max_new=12)
    while speaker.speaking is None:
        e.step()
    reader.append(TEXT[:400])
    beside = [sum(e.step().ingested.values()) for _ in range(9)]
    assert 0 < sum(beside) <= 3 * 2, "nothing fits the target, so reading gets its least every third step"
    e.drain()
    assert answer.text()
    for session in (speaker, reader):
        assert_whole(session)


def test_impossible_targets() -> None:
    with pytest.raises(UsageError, match="positive"):
        Targets(between=0)
