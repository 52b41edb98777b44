"""Records that every room shares."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core import Budget, Chunk, Clock, Phase, RealClock, SimulatedClock, Span, parse_size
from penstock.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        (4096, Budget(entries=4096)),
        ("4096", Budget(entries=4096)),
        (" 4096 ", Budget(entries=4096)),
        ("64MiB", Budget(bytes=64 << 20)),
        ("64 mib", Budget(bytes=64 << 20)),
        ("1.5KiB", Budget(bytes=1536)),
        ("2GB", Budget(bytes=2 * 10**9)),
        ("800B", Budget(bytes=800)),
        ("30s", Budget(seconds=30.0)),
        ("0.25s", Budget(seconds=0.25)),
        (Budget(seconds=2), Budget(seconds=2)),
    ],
)
def test_budget_forms(text: str | int | Budget, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    "text", ["", "0", "-5", "4096.5", "50%", "0.5", "4 096", "64MiBs", "1e3", "s", "0s", "0.5B", "nan", "9" * 400, True]
)
def test_a_budget_that_cannot_be_read_says_how_to_write_one(text: str) -> None:
    with pytest.raises(BudgetError, match=r"give entries \(4096\), bytes \(64MiB\) or seconds \(30s\)"):
        Budget.parse(text)


@given(st.text(max_size=12) | st.from_regex(r"\d{1,5}(\.\d{1,3})?[a-zA-Z]{0,4}", fullmatch=True))
def test_reading_a_budget_raises_nothing_else(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except BudgetError:
        return
    [value] = [v for v in (budget.entries, budget.bytes, budget.seconds) if v is not None]
    assert value > 0


@given(
    st.builds(Budget, entries=st.integers(1, 2**53))
    | st.builds(Budget, bytes=st.integers(1, 2**53))
    | st.builds(Budget, seconds=st.floats(1e-3, 1e9))
)
def test_a_budget_reads_what_it_writes(budget: Budget) -> None:
    """A million seconds was written `1e+06s`, which is not a budget."""
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("given", [{}, {"entries": 0}, {"entries": 4, "bytes": 4}, {"seconds": -1.0}])
def test_a_budget_is_exactly_one_positive_number(given: dict[str, int]) -> None:
    with pytest.raises(BudgetError, match="exactly one"):
        Budget(**given)


def test_sizes() -> None:
    assert parse_size(512) == 512
    assert parse_size("512") == 512
    assert parse_size("10MB") == 10_000_000
    with pytest.raises(BudgetError, match="give bytes"):
        parse_size("30s")
    with pytest.raises(BudgetError):
        parse_size("many")


def test_a_simulated_clock_moves_only_when_told_to() -> None:
    clock: Clock = SimulatedClock()
    assert clock.now() == 0
    clock.sleep(2.5)
    clock.sleep(-1)
    assert clock.now() == 2.5


def test_the_real_clock_never_goes_back() -> None:
    clock: Clock = RealClock()
    times = []
    for _ in range(5):
        times.append(clock.now())
        clock.sleep(-1)
    clock.sleep(0.002)
    assert clock.now() - times[0] >= 0.002
    assert times == sorted(times)


def test_records_are_values() -> None:
    assert Chunk("text") == Chunk("text", kind="text", t0=0, t1=0, index=0)
    assert Span(1, 2) == Span(row=1, count=2)
    assert Phase("ask") is Phase.ASK
    for record, field in ((Chunk("a"), "kind"), (Span(0, 1), "count"), (Budget(entries=1), "entries")):
        with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
            setattr(record, field, 7)
