"""The queue in front of a session: no byte appears or vanishes, and lateness has the consequence that was asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine import Lag
from penstock.engine.inbox import Inbox
from penstock.errors import MemoryStateError, UnknownName, UsageError

ACTIONS = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 9), st.integers(0, 40), st.integers(0, 60)),
    st.tuples(st.just("take"), st.integers(0, 9), st.just(0), st.just(0)),
    st.tuples(st.just("wait"), st.integers(0, 900), st.just(0), st.just(0)),
    st.tuples(st.just("cut"), st.integers(0, 20), st.just(0), st.just(0)),
    st.tuples(st.just("drop_held"), st.just(0), st.just(0), st.just(0)),
)


@given(st.sampled_from(["wait", "drop-oldest", "coarsen"]), st.lists(ACTIONS, max_size=40))
def test_every_byte_is_somewhere(policy: str, actions: list[tuple[str, int, int, int]]) -> None:
    inbox, now = Inbox(Lag(1000, 60, policy)), 0.0
    for name, a, b, c in actions:
        if name == "put":
            inbox.put(list(range(a)), b, c, now)
        elif name == "take":
            inbox.take(inbox.available(a))
        elif name == "cut":
            inbox.cut(a)
        elif name == "drop_held":
            inbox.drop_held()
        now += a / 1e3 if name == "wait" else 0.0
        inbox.relieve(now)
        inbox.check()
    assert inbox.copy().pending == inbox.pending
    inbox.copy().check()
    inbox.empty()
    inbox.check()
    assert inbox.pending == 0


def test_a_lost_byte_is_told() -> None:
    inbox = Inbox(Lag())
    inbox.put([1, 2], 5, 0, 0.0)
    inbox.accepted += 1
    with pytest.raises(MemoryStateError, match="6 bytes were accepted"):
        inbox.check()


def filled(policy: str, pieces: int = 8) -> Inbox:
    """One piece of 10 bytes and 2 tokens each second."""
    inbox = Inbox(Lag(3500, None, policy))
    for i in range(pieces):
        inbox.put([i, i], 10, 0, float(i))
    return inbox


def test_drop_oldest_leaves_what_is_in_time() -> None:
    inbox = filled("drop-oldest")
    assert inbox.relieve(7.0) == 40
    assert inbox.next(99)[0] == [4, 4, 5, 5, 6, 6, 7, 7]
    assert inbox.lag_ms(7.0) == 3000


def test_coarsen_keeps_every_second_piece_and_at_least_one_in_eight() -> None:
    inbox = filled("coarsen", 16)
    assert inbox.relieve(15.0) == 80
    assert inbox.next(99)[0][::2] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert inbox.relieve(15.5) == 0, "not twice in a second"
    for now in range(17, 40):
        inbox.relieve(float(now))
    assert inbox.next(99)[0][::2] == [0, 8]
    assert inbox.counters["coarsened"] == 14


def test_wait_drops_nothing() -> None:
    inbox = filled("wait")
    assert inbox.relieve(100.0) == 0
    assert inbox.is_late(100.0)


def test_what_is_half_read_is_not_dropped() -> None:
    inbox = filled("drop-oldest")
    inbox.take(1)
    inbox.relieve(100.0)
    assert inbox.next(99)[0] == [0]


def test_lag_is_the_age_of_the_oldest_unread_input() -> None:
    inbox = Inbox(Lag())
    inbox.put([], 3, 3, 1.0)  # held back by the encoder
    assert inbox.lag_ms(2.0) == 1000
    inbox.put([1], 4, 0, 3.0)
    assert inbox.lag_ms(4.0) == 3000
    inbox.take(1)
    assert inbox.lag_ms(9.0) == 0
    assert not inbox.is_late(9.0)


def test_impossible_lag_budgets_are_refused() -> None:
    with pytest.raises(UnknownName, match="drop-oldest"):
        Lag(policy="drop")
    with pytest.raises(UsageError, match="positive"):
        Lag(budget_ms=0)
