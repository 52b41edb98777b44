"""Orders, and admission by predicted memory against a simulation of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine import POLICIES, PastFuture
from penstock.engine.policies import Candidate, peak, policy_of
from penstock.errors import UnknownName

STREAMS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30)), max_size=8)


def simulated(streams: list[tuple[int, int]]) -> int:
    """Token by token: each stream gains one entry per step and leaves when all have come."""
    most = 0
    for t in range(1 + max((coming for _, coming in streams), default=0)):
        most = max(most, sum(now + t for now, coming in streams if t <= coming))
    return most


@given(STREAMS)
def test_the_peak_is_that_of_a_simulation(streams: list[tuple[int, int]]) -> None:
    assert peak(streams) == simulated(streams)


@given(STREAMS, st.tuples(st.integers(0, 40), st.integers(0, 30)))
def test_one_more_stream_never_lowers_the_peak(streams: list[tuple[int, int]], more: tuple[int, int]) -> None:
    assert peak([*streams, more]) >= peak(streams)


def test_orders() -> None:
    a = Candidate("a", arrived=3.0, deadline=9.0, served=1.0)
    b = Candidate("b", arrived=1.0, deadline=8.0, served=2.0)
    c = Candidate("c", arrived=2.0, served=0.0)
    names = {name: "".join(x.id for x in policy_of(name).order([a, b, c])) for name in POLICIES}
    assert names == {
        "first-come": "bca", "earliest-deadline": "bac", "least-recently-served": "cab", "past-future": "bca"
    }  # fmt: skip


def test_an_unknown_policy_is_told_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="earliest-deadline"):
        policy_of("earliest")


def test_a_constant_past_predicts_exactly() -> None:
    policy = PastFuture()
    for _ in range(50):
        policy.ended(12)
    assert {policy.predict(grown, 100, 0.7) for grown in range(12)} == {12}
    assert policy.predict(12, 100, 0.0) > 12


def test_the_past_is_forgotten_beyond_its_window() -> None:
    policy = PastFuture(window=4)
    for tokens in [90, 90, 90, 90, 5, 5, 5, 5]:
        policy.ended(tokens)
    assert {policy.predict(0, 100, draw / 20) for draw in range(20)} == {5}


def running(id: str, held: int, grown: int, **options: object) -> Candidate:
    return Candidate(id, 0.0, decodes=True, has_row=True, held=held, grown=grown, most=64, **options)  # type: ignore[arg-type]


def test_admission_keeps_the_predicted_peak_below_capacity() -> None:
    policy = PastFuture(reserve=0.0)
    for _ in range(20):
        policy.ended(10)
    ordered = [running("a", 20, 4), Candidate("b", 1.0, held=20, most=64, tokens=0), Candidate("c", 2.0, held=1)]
    # a ends with 26, b with 30; when a ends, b has 26; c is gone by then
    assert [c.id for c in policy.admit(ordered, 53)] == ["a", "b", "c"]
    assert [c.id for c in policy.admit(ordered, 52)] == ["a"], "the first that does not fit keeps its place"
    assert policy.admit(ordered, None) == ordered


def test_a_bounded_memory_counts_with_what_it_can_still_grow() -> None:
    policy = PastFuture(reserve=0.0)
    ordered = [running("a", 24, 4, limit=24), Candidate("b", 1.0, held=20, most=64, tokens=0, limit=24)]
    assert len(policy.admit(ordered, 49)) == 2
    assert len(policy.admit(ordered, 48)) == 1


def test_somebody_is_always_admitted() -> None:
    assert len(PastFuture().admit([Candidate("a", 0.0, held=500, most=64)], 10)) == 1
