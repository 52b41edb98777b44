"""Acquisition: rows and tokens in the order of the policy, never more than there are."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.plan import Limits, acquire
from penstock.engine.policies import Candidate

CANDIDATE = st.builds(
    Candidate, id=st.just(""), arrived=st.just(0.0), tokens=st.integers(0, 90), decodes=st.booleans(),
    has_row=st.booleans(), is_pinned=st.booleans(), is_fresh=st.booleans(), held=st.integers(0, 30),
)  # fmt: skip


@given(
    st.lists(CANDIDATE, max_size=8), st.integers(0, 3), st.integers(0, 3), st.integers(1, 100),
    st.none() | st.integers(1, 60),
)  # fmt: skip
def test_nothing_is_given_out_twice(
    wanted: list[Candidate], idle: int, free: int, tokens: int, capacity: int | None
) -> None:  # fmt: skip
    ordered = [replace(c, id=f"{i}", is_pinned=c.is_pinned and c.has_row) for i, c in enumerate(wanted)]
    resting = [Candidate(f"idle{i}", 0.0, has_row=True, held=9) for i in range(idle)]
    limits = Limits(chunk=32, tokens=tokens, logits=3, capacity=capacity)
    plan = acquire(ordered, resting, free, limits)
    by_id = {c.id: c for c in (*ordered, *resting)}
    served = [by_id[id] for id, _ in plan.serve]
    demoted = [by_id[id] for id in plan.demote]
    assert sum(not c.has_row for c in served) <= free + len(demoted)
    assert all(c.has_row and not c.is_pinned and not c.is_fresh for c in demoted)
    assert not {c.id for c in served} & {c.id for c in demoted}
    assert sorted([*plan.waiting, *(c.id for c in served)]) == sorted(c.id for c in ordered)
    assert sum(c.decodes for c in served) <= 3
    reading = [n for id, n in plan.serve if not by_id[id].decodes]
    assert sum(reading) <= tokens
    assert all(n <= 32 for n in reading)
    here = {c.id: c.held for c in (*ordered, *resting) if c.has_row and c.id not in plan.demote}
    here |= {c.id: c.held for c in served}
    if capacity is not None and len(plan.serve) > 1:
        assert sum(n for _, n in plan.serve) + sum(here.values()) <= max(capacity, sum(c.held for c in ordered[:1]))
    if any(c.has_row or free for c in ordered[:1]):
        assert served, "the first in order is always served if it has a place"


def test_idle_sessions_leave_first_then_the_last_in_order() -> None:
    a, c, e = (Candidate(id, 0.0) for id in "ace")
    b, d = (Candidate(id, 0.0, has_row=True) for id in "bd")
    idle = [Candidate("z", 0.0, has_row=True)]
    plan = acquire([a, b, c, d, e], idle, 0, Limits())
    assert (plan.demote, [id for id, _ in plan.serve], plan.waiting) == (["z", "d"], ["a", "b", "c"], ["d", "e"])


def test_nobody_leaves_for_one_that_is_behind() -> None:
    a = Candidate("a", 0.0, has_row=True)
    assert acquire([a, Candidate("b", 1.0)], [], 0, Limits()).waiting == ["b"]


def test_answers_keep_their_token_beside_long_input() -> None:
    reading = [Candidate(f"{i}", 0.0, tokens=64, has_row=True) for i in range(4)]
    speaking = [Candidate(f"a{i}", 1.0, decodes=True, has_row=True) for i in range(3)]
    plan = acquire([*reading, *speaking], [], 0, Limits(chunk=64, tokens=100))
    assert dict(plan.serve) == {"0": 64, "1": 33, "a0": 1, "a1": 1, "a2": 1}


def test_a_full_device_sends_others_away() -> None:
    first = Candidate("a", 0.0, tokens=10, has_row=True, held=40)
    plan = acquire([first], [Candidate("z", 0.0, has_row=True, held=30)], 1, Limits(capacity=60))
    assert (plan.demote, plan.serve) == (["z"], [("a", 10)])
