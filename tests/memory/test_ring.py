"""Fast equals naive equals the rule of indices, for every composition, encoding and cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core import Span
from penstock.memory import Cascade, Everything, Segment, Sinks, Window
from penstock.memory.positions import POLICIES

from .stack import Stack, difference, encodings, tokens

CASCADES: dict[str, tuple[Segment, ...]] = {
    "everything": (Everything(),),
    "window": (Window(5),),
    "sinks-window": (Sinks(3), Window(6)),
    "no-sinks-window": (Sinks(0), Window(6)),
    "two-windows": (Sinks(2), Window(3), Window(5)),
    "three-windows": (Window(4), Window(1), Window(2)),
}


@pytest.mark.parametrize("segments", CASCADES.values(), ids=CASCADES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("encoding", encodings(8, 4))
def test_every_cascade_under_every_encoding(segments: tuple[Segment, ...], policy: str, encoding: str) -> None:
    """41 tokens, a layer with and one without a window of its own, in steps of 1, 7, 64 and by the naive form."""
    cascade, stack, stream = Cascade(segments, policy), Stack(encoding, windows=(None, 7)), tokens(41)
    expected = stack.expected(stream, cascade)
    assert difference(stack.feed(stack.memory(cascade, naive=True), stream), expected) < 2e-6
    for chunk in (1, 7, 64):
        assert difference(stack.feed(stack.memory(cascade), stream, chunk), expected) < 2e-6, f"chunk {chunk}"


windows = st.lists(st.integers(1, 9), min_size=1, max_size=2)
cuts = st.lists(st.integers(1, 11), min_size=1, max_size=7)


@settings(max_examples=60)
@given(
    sinks=st.integers(0, 5),
    windows=windows,
    policy=st.sampled_from(POLICIES),
    encoding=st.sampled_from(sorted(encodings(8, 1))),
    heads=st.sampled_from([(4, 4), (4, 2), (3, 1), (1, 1)]),
    own=st.sampled_from([None, 1, 4]),
    extras=st.tuples(st.sampled_from([None, 2.0]), st.booleans()),
    rows=st.lists(cuts, min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
def test_fast_equals_naive(
    sinks: int,
    windows: list[int],
    policy: str,
    encoding: str,
    heads: tuple[int, int],
    own: int | None,
    extras: tuple[float | None, bool],
    rows: list[list[int]],
    seed: int,
) -> None:
    """Random compositions; several rows of different lengths packed in each step, cut at random."""
    softcap, learned = extras
    stack = Stack(encoding, (None, own), *heads, softcap=softcap, learned_sinks=learned, seed=seed)
    cascade = Cascade((Sinks(sinks), *map(Window, windows)), policy)
    fast, naive = (stack.memory(cascade, len(rows), naive) for naive in (False, True))
    streams = [tokens(sum(row), seed + i) for i, row in enumerate(rows)]
    for turn in range(max(map(len, rows))):
        packed = {}
        for row, (sizes, stream) in enumerate(zip(rows, streams)):
            if turn < len(sizes):
                start = sum(sizes[:turn])
                packed[row] = stream[start : start + sizes[turn]]
        got, expected = stack.step(fast, packed), stack.step(naive, packed)
        for row in packed:
            assert difference(got[row], expected[row]) < 2e-6, f"row {row} in step {turn}"


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("encoding", encodings(8, 4))
def test_decode_equals_ingest(rows: int, encoding: str) -> None:
    """The batched read of adjacent rows and the general one answer the same, before and after the ring is full."""
    cascade, stack = Cascade((Sinks(2), Window(5)), "clamped"), Stack(encoding)
    streams = [tokens(30, row) for row in range(rows)]
    memory = stack.memory(cascade, rows)
    starts = range(2, 2 + rows)  # the rows stand at different lengths
    for row, (stream, start) in enumerate(zip(streams, starts)):
        stack.feed(memory, stream[:start], row=row)
    expected = [stack.feed(stack.memory(cascade), stream, 7) for stream in streams]  # never the batched read
    plans = [group.plan([Span(row, 1) for row in range(rows)], list(starts)) for group in memory.groups]
    assert all(plan.decode is not None for plan in plans)
    for i in range(20):
        got = stack.step(memory, {row: [stream[starts[row] + i]] for row, stream in enumerate(streams)})
        for row in range(rows):
            assert difference(got[row], expected[row][:, starts[row] + i :][:, :1]) < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("encoding", encodings(8, 4))
def test_half_precision_stays_close_to_float32(dtype: torch.dtype, encoding: str) -> None:
    """Storage is rounded once and never again: thirty windows later the error is what it was in the first."""
    cascade, stack, stream = Cascade((Sinks(2), Window(9)), "clamped"), Stack(encoding, dtype=dtype), tokens(300)
    expected = stack.expected(stream, cascade)
    for chunk in (1, 64):
        got = stack.feed(stack.memory(cascade), stream, chunk)
        assert got.dtype == dtype
        early, late = (difference(got[:, part], expected[:, part]) for part in (slice(0, 40), slice(-40, None)))
        assert max(early, late) < (0.05 if dtype is torch.bfloat16 else 0.01)
        assert late < 4 * early


def test_a_sink_size_that_the_stream_never_reaches() -> None:
    cascade, stack, stream = Cascade((Sinks(5), Window(2)), "clamped"), Stack(), tokens(4)
    for chunk in (1, 3, 64):
        assert difference(stack.feed(stack.memory(cascade), stream, chunk), stack.expected(stream, cascade)) < 2e-6


def test_growing_past_the_first_capacity() -> None:
    """The store of a growing memory starts at 256 slots and doubles; nothing is lost where it does."""
    cascade, stack, stream = Cascade((Everything(),)), Stack(windows=(None,)), tokens(700)
    got = stack.feed(stack.memory(cascade), stream, 64)
    assert difference(got, stack.expected(stream, cascade)) < 2e-6


def test_only_what_a_query_may_see_is_read() -> None:
    """NaN in the storage behind the newest entries, where nothing was written, reaches no answer once it is cleared."""
    cascade, stack = Cascade((Sinks(2), Window(6)), "clamped"), Stack()
    memory = stack.memory(cascade)
    poisoned = Stack()
    poisoned.values[:] = poisoned.keys[:] = float("nan")
    poisoned.feed(memory, tokens(20), 1)
    memory.reset()
    stream = tokens(20)
    got = torch.cat((stack.feed(memory, stream[:3], 1), stack.feed(memory, stream[3:], 7)), dim=1)
    assert difference(got, stack.expected(stream, cascade)) < 2e-6
