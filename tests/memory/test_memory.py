"""Bytes, views, evictions, and the steps that are refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.core import Span
from penstock.errors import ContextFull
from penstock.memory import Cascade, Everything, Geometry, Layer, Memory, Sinks, Window, row_bytes

from .stack import Stack, tokens

CASCADE = Cascade((Sinks(2), Window(6)), "clamped")


def storage(memory: Memory) -> int:
    """Bytes of all tensors that the memory's groups and marks hold."""
    tensors = [t for g in memory.groups for t in [*(r for ring in g.rings for r in ring), *g.raw_sinks]]
    tensors += [t for row in memory.rows for undo in row.undo for rings in undo.store for t in rings]
    return sum(t.untyped_storage().nbytes() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_the_formula_and_the_storage(dtype: torch.dtype) -> None:
    """Two layers of 8 entries and of 3, two heads of width 8, and a raw copy of the first layer's two sink keys."""
    stack = Stack(windows=(None, 3), dtype=dtype)
    memory = stack.memory(CASCADE, rows=2)
    entry = 2 * (8 + 8) * dtype.itemsize
    expected = 2 * ((8 + 3) * entry + 2 * 2 * 8 * dtype.itemsize)
    assert memory.budget_bytes == memory.nbytes == storage(memory) == expected
    stack.feed(memory, tokens(40), 7)
    assert memory.nbytes == storage(memory) == expected
    mark = memory.mark(max_new=5)
    assert memory.nbytes == storage(memory) == memory.budget_bytes == expected + 5 * 2 * entry
    memory.commit(mark)
    assert memory.nbytes == expected
    assert row_bytes(stack.geometry, memory.cascades) == expected // 2


def test_a_growing_memory_tells_its_storage() -> None:
    stack = Stack()
    memory = stack.memory(Cascade((Everything(),)))
    assert memory.budget_bytes is None
    assert not memory.is_bounded
    stack.feed(memory, tokens(300), 64)
    entry = 2 * 2 * (8 + 8) * 4
    assert memory.nbytes == storage(memory) == 512 * entry  # the store doubled once
    assert row_bytes(stack.geometry, memory.cascades) is None


def test_the_naive_form_counts_what_it_holds() -> None:
    stack = Stack()
    memory = stack.memory(CASCADE, naive=True)
    stack.feed(memory, tokens(5))
    assert memory.nbytes == 2 * 5 * 2 * (8 + 8) * 4
    stack.feed(memory, tokens(50))
    assert memory.nbytes == 2 * 8 * 2 * (8 + 8) * 4


@given(
    sinks=st.integers(0, 4), windows=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    own=st.sampled_from([None, 1, 3, 9]), cuts=st.lists(st.integers(1, 9), max_size=6),
)  # fmt: skip
def test_view_and_evicted_tell_what_the_naive_form_holds(
    sinks: int, windows: list[int], own: int | None, cuts: list[int]
) -> None:
    stack, cascade = Stack(windows=(None, own), width=2), Cascade((Sinks(sinks), *map(Window, windows)))
    memory, naive = stack.memory(cascade), stack.memory(cascade, naive=True)
    known: set[int] = set()
    for count in cuts:
        start = memory.length()
        fed = tokens(count, count)
        stack.feed(memory, fed)
        stack.feed(naive, fed)
        for layer in range(2):
            group, index = naive.where[layer]
            held = [{e.seen for e in segment.entries} for segment in naive.groups[group].rooms[0][index]]
            held = held if cascade.sinks and layer == 0 else [h for h in held if h]
            views = [set(v.seen) for v in memory.view() if layer in v.layers]
            assert [v for v in views if v] == [h for h in held if h]
        before = known | set(range(start, memory.length()))
        known = {j for v in memory.view() for j in v.seen}
        gone = {j for run in memory.evicted(start, memory.length()) for j in run}
        assert set(gone) == before - known
        assert before - set(gone) == known


def test_view_names_segments_and_layers() -> None:
    stack = Stack(windows=(None, 3, None))
    memory = stack.memory(CASCADE)
    assert [v.seen for v in memory.view()] == [range(0), range(2, 2), range(0)]
    stack.feed(memory, tokens(20))
    assert [(v.name, v.layers, v.seen) for v in memory.view()] == [
        ("sinks", (0, 2), range(2)),
        ("window", (0, 2), range(14, 20)),
        ("window", (1,), range(17, 20)),
    ]
    dense = stack.memory(Cascade((Everything(),)))
    stack.feed(dense, tokens(20))
    assert [(v.name, v.seen) for v in dense.view()] == [("everything", range(20)), ("window", range(17, 20))]
    assert dense.evicted(0, 20) == []


@pytest.mark.parametrize("spans", [[], [Span(0, 0)], [Span(0, 1), Span(0, 2)], [Span(2, 1)], [Span(-1, 1)]])
def test_a_step_names_each_row_once(spans: list[Span]) -> None:
    memory = Stack().memory(CASCADE, rows=2)
    with pytest.raises(ValueError, match="a step"), memory.step(spans):
        pass
    assert [memory.length(row) for row in range(2)] == [0, 0]


def test_learned_positions_end() -> None:
    layer = Layer(0, 2, 2, 4, 4, None)
    memory = Memory(Geometry((layer,), torch.float32, torch.device("cpu"), max_positions=10), [CASCADE])
    with memory.step([Span(0, 10)]):
        pass
    with pytest.raises(ContextFull, match="learned positions for 10 tokens and the stream would reach 11"):
        memory.step([Span(0, 1)]).__enter__()
    assert memory.length() == 10


def test_one_cascade_per_layer() -> None:
    with pytest.raises(ValueError, match="got 1 cascades for 2 layers"):
        Memory(Stack().geometry, [CASCADE])
