"""Plans: every fact once, every bin with questions enough, everything within the stream."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.compare import Placed, Stream, make_plan
from penstock.compare.questions import LEAST, USUAL
from penstock.errors import InputError, UsageError


def spaced(tokens: int, every: int = 40, long: int = 12) -> Stream:
    """A stream of nothing with a fact in every so many tokens."""
    facts = [Placed(str(at), at, at + long, (1,), (2,)) for at in range(3, tokens - long, every)]
    return Stream("nothing", [0] * tokens, tuple(facts))


def check(stream: Stream, plan_of: object) -> None:
    plan = plan_of
    asked = [question.fact.start for question in plan.questions]  # type: ignore[attr-defined]
    assert len(set(asked)) == len(asked), "a fact is asked twice"
    for question in plan.questions:  # type: ignore[attr-defined]
        assert question.distance in plan.bins[question.bin]  # type: ignore[attr-defined]
        assert question.fact.end <= question.at <= len(stream.ids)
    counts = [sum(q.bin == i for q in plan.questions) for i in range(len(plan.bins))]  # type: ignore[attr-defined]
    assert min(counts) >= LEAST


@given(st.integers(4000, 12_000), st.integers(64, 512), st.integers(20, 60))
def test_plans_keep_their_promises(tokens: int, budget: int, every: int) -> None:
    stream = spaced(tokens, every)
    plan = make_plan(stream, budget)
    check(stream, plan)
    assert plan.digest == make_plan(stream, budget).digest != make_plan(stream, budget, seed=1).digest
    assert plan.bins[-1].high <= min(50 * budget, tokens)


def test_a_long_stream_has_all_bins_up_to_fifty_budgets() -> None:
    plan = make_plan(spaced(20_000), 256)
    edges = [(each.low / 256, each.high / 256) for each in plan.bins]
    assert edges == list(itertools.pairwise((0, 0.25, 0.5, 1, 2, 5, 10, 20, 50)))
    counts = [sum(q.bin == i for q in plan.questions) for i in range(len(plan.bins))]
    assert counts == [USUAL] * 8


def test_a_short_stream_has_fewer_bins_that_still_part_at_the_budget() -> None:
    plan = make_plan(spaced(2400), 64)
    assert len(plan.bins) < 8
    assert (plan.bins[0].low, plan.bins[0].high) == (0, 64)
    check(spaced(2400), plan)


def test_named_distances_have_a_bin_of_their_own() -> None:
    plan = make_plan(spaced(9000), 256, (200, 4000))
    assert [(each.low, each.high) for each in plan.bins] == [(180, 220), (3600, 4400)]
    check(spaced(9000), plan)


def test_distances_are_spread_over_a_bin_and_over_the_stream() -> None:
    plan = make_plan(spaced(20_000), 256)
    far = [q for q in plan.questions if q.bin == 7]
    assert min(q.distance for q in far) < 6500
    assert max(q.distance for q in far) > 11_000
    assert len({q.at for q in far}) > 20


@pytest.mark.parametrize(
    ("tokens", "distances", "says"),
    [
        (3000, (5000,), "longer than the stream of 3,000"),
        (3000, (2990,), "give --tokens 6578 or another distance"),
        (700, (), "give --tokens"),
    ],
)
def test_too_few_questions_are_refused_with_the_fix(tokens: int, distances: tuple[int, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_plan(spaced(tokens), 64, distances)


def test_few_questions_per_bin_are_refused_and_no_facts_are_no_questions() -> None:
    with pytest.raises(UsageError, match="at least 20"):
        make_plan(spaced(4000), 64, per_bin=5)
    assert make_plan(Stream("text", [0] * 100), 64).questions == ()


def test_recall_is_the_share_of_right_answers_per_bin() -> None:
    plan = make_plan(spaced(9000), 256, (200, 4000), per_bin=20)
    hits = [q.bin == 0 or q.at % 128 == 0 for q in plan.questions]
    near, far = plan.recall(hits)
    assert near == {"from": 180, "to": 220, "recall": 1.0, "n": 20}
    assert far["recall"] == sum(hit for hit, q in zip(hits, plan.questions) if q.bin == 1) / 20
