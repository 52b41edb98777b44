"""The arithmetic of windows: who is stored, who arrives, who leaves, and in which slot."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.core import Span
from penstock.memory.plan import Planner, seen_of_slots, slot_of, window_ranges


def test_the_picture() -> None:
    """sinks 0..1 | window of 4 holds 6..9 | 10..12 arrive, 6..8 leave and enter a second window of 3."""
    stored, arriving, leaving = window_ranges(10, 13, 2, 0, 4)
    assert (list(stored), list(arriving), list(leaving)) == ([6, 7, 8, 9], [10, 11, 12], [6, 7, 8])
    stored, arriving, leaving = window_ranges(10, 13, 2, 4, 3)
    assert (list(stored), list(arriving), list(leaving)) == ([3, 4, 5], [6, 7, 8], [3, 4, 5])


def test_the_beginning() -> None:
    stored, arriving, leaving = window_ranges(0, 5, 2, 0, 4)
    assert (list(stored), list(arriving), list(leaving)) == ([], [2, 3, 4], [])
    stored, arriving, leaving = window_ranges(0, 1, 2, 0, 4)
    assert (list(stored), list(arriving), list(leaving)) == ([], [], [])
    stored, arriving, leaving = window_ranges(0, 9, 2, 0, 4)  # more than fits: 2 and 3 and 4 pass straight through
    assert (list(stored), list(arriving), list(leaving)) == ([], [2, 3, 4, 5, 6, 7, 8], [2, 3, 4])


def test_a_window_without_a_size_keeps_everything() -> None:
    stored, arriving, leaving = window_ranges(7, 9, 0, 0, None)
    assert (list(stored), list(arriving), list(leaving)) == ([0, 1, 2, 3, 4, 5, 6], [7, 8], [])


sizes = st.tuples(st.integers(0, 4), st.lists(st.integers(1, 6), min_size=1, max_size=3))


@given(sizes=sizes, cuts=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_what_one_gives_up_enters_the_next_and_nothing_is_lost(sizes: tuple[int, list[int]], cuts: list[int]) -> None:
    sinks, windows = sizes
    held: list[list[int]] = [[] for _ in windows]
    start = 0
    for count in cuts:
        end = start + count
        flow = list(range(max(sinks, start), max(sinks, end)))
        age = 0
        for i, size in enumerate(windows):
            stored, arriving, leaving = window_ranges(start, end, sinks, age, size)
            assert list(stored) == held[i]
            assert list(arriving) == flow
            both = held[i] + flow
            held[i], flow = both[-size:], both[:-size]
            assert list(leaving) == flow
            age += size
        start = end


@given(sinks=st.integers(0, 5), size=st.integers(1, 9), end=st.integers(0, 60))
def test_slots_and_seen_are_inverse(sinks: int, size: int, end: int) -> None:
    stored, _, _ = window_ranges(end, end, sinks, 0, size)
    seen = seen_of_slots(stored, sinks, size)
    assert sorted(seen.tolist()) == list(stored)
    assert slot_of(seen, sinks, size).tolist() == list(range(len(stored)))
    # Oldest out means the next entry takes the slot of the oldest one.
    if len(stored) == size:
        oldest = torch.tensor([stored.start])
        assert slot_of(torch.tensor([end]), sinks, size).item() == slot_of(oldest, sinks, size).item()


@given(sizes=sizes, start=st.integers(0, 40), count=st.integers(1, 12), policy=st.sampled_from(["stream", "clamped"]))
def test_visibility_is_a_rule_of_indices(sizes: tuple[int, list[int]], start: int, count: int, policy: str) -> None:
    """Over all parts, the query at t sees exactly the sinks up to t and the newest sum(windows) entries, once each."""
    sinks, windows = sizes
    planner = Planner(sinks, tuple(windows), policy, None, torch.float32, torch.device("cpu"))
    span = planner._span(Span(0, count), start, 0)
    for c in range(count):
        now, age, seen_by_query = start + c, 0, []
        for size, window in zip(windows, span.windows):
            index = torch.cat(
                (seen_of_slots(window.stored, sinks, size), torch.arange(window.arriving.start, window.arriving.stop))
            )
            seen_by_query += index[window.mask[c] == 0].tolist()
            age += size
        if span.sink_mask is not None:
            seen_by_query += torch.arange(span.sinks_after)[span.sink_mask[c] == 0].tolist()
        expected = [j for j in range(now + 1) if j < sinks or now - j < sum(windows)]
        assert sorted(seen_by_query) == expected


def test_a_batched_read_needs_adjacent_rows_with_complete_sinks() -> None:
    planner = Planner(2, (4,), "clamped", None, torch.float32, torch.device("cpu"))

    def is_decode(spans: list[tuple[int, int]], starts: list[int]) -> bool:
        return planner.plan([Span(*s) for s in spans], starts).decode is not None

    assert is_decode([(0, 1), (1, 1)], [2, 90])
    assert is_decode([(1, 1)], [5])
    assert not is_decode([(0, 1), (2, 1)], [5, 5])  # rows 0 and 2
    assert not is_decode([(1, 1), (0, 1)], [5, 5])
    assert not is_decode([(0, 1)], [1])  # its second sink is still to come
    assert not is_decode([(0, 2)], [5])
    assert not Planner(2, (4, 4), "clamped", None, torch.float32, torch.device("cpu")).plan([Span(0, 1)], [9]).decode
