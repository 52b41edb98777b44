"""Read or write: the checks of wait-k, local agreement and hold-n, and the measures of lag and flicker by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.triggers.policies import Hold, LocalAgreement, Policy, Seen, WaitK, erasure, lagging, parse_policy


@given(st.integers(1, 9), st.sampled_from([0.0, 0.2, 0.5]), st.integers(0, 40))
def test_wait_k_never_writes_before_its_source_and_writes_as_soon_as_it_may(k: int, c: float, read: int) -> None:
    rule = WaitK(k, c)
    allowed = rule.allows(Seen(read, finished=False))
    assert allowed is not None
    for i in range(1, 60):
        needed = max(1, k + i - 1 - int(c * i))
        assert (i <= allowed) == (needed <= read) or needed > read >= needed - 1 == 0
    assert rule.allows(Seen(read, finished=True)) is None


def test_the_common_prefix_of_the_last_hypotheses_stands() -> None:
    rule = LocalAgreement(2)
    a, b, c = ("the", "dog", "is"), ("the", "dog", "barks"), ("the", "dog", "barks", "now")
    assert rule.allows(Seen(1, False, (a,))) == 0
    assert rule.allows(Seen(2, False, (a, b))) == 2
    assert rule.allows(Seen(3, False, (a, b, c))) == 3
    assert LocalAgreement(3).allows(Seen(3, False, (a, b, c))) == 2
    assert LocalAgreement(1).allows(Seen(3, False, (c,))) == 4
    assert rule.allows(Seen(3, True, (a, b))) is None


def test_the_last_units_are_held() -> None:
    for n, allowed in ((0, 4), (1, 3), (4, 0), (9, 0)):
        assert Hold(n).allows(Seen(2, False, (("a", "b", "c", "d"),))) == allowed
        assert Hold(n).allows(Seen(2, True, (("a",),))) is None


def test_erasure_and_lag_by_hand() -> None:
    shown = [("a",), ("a", "b"), ("a", "c", "d"), ("x", "c", "d", "e")]
    assert erasure(shown) == (0 + 1 + 3) / 4
    assert erasure(shown[:2]) == 0.0
    assert lagging([3, 4, 5, 5], 5) == (3 + (4 - 1.25) + (5 - 2.5)) / 3  # wait-3, five words, four written
    assert lagging([1, 2, 3], 3) == 1.0  # wait-1
    assert lagging([5, 5], 5) == 5.0
    assert lagging([9], 5) == 9.0
    assert lagging([1, 2, 3, 3, 3, 3], 3, target=3) == 1.0  # a longer reference than what was written: LAAL


def test_names() -> None:
    policies: list[Policy] = [WaitK(5), LocalAgreement(2), Hold(3)]
    assert [parse_policy(text) for text in ("wait-5", "LA-2", "hold-3")] == policies
    for text in ("wait", "la-x", "hold--1", "wait-0"):
        with pytest.raises(UsageError):
            parse_policy(text)
