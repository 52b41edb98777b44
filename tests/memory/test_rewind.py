"""Marks, rollback, truncate and failed steps: exactly as if it had never been fed, or refused."""

from __future__ import annotations

import contextlib

import pytest

from penstock.errors import MemoryStateError, NotRewindable
from penstock.memory import Cascade, Everything, Memory, Sinks, Window

from .stack import Stack, difference, tokens

CASCADE = Cascade((Sinks(2), Window(6)), "clamped")
TWO = Cascade((Sinks(2), Window(4), Window(3)), "clamped")


def continues_as(stack: Stack, memory: Memory, cascade: Cascade, stream: list[int], row: int = 0) -> None:
    """From here on the row answers as a row that read exactly `stream`, token by token and in one piece."""
    assert memory.length(row) == len(stream)
    more = tokens(23, seed=5)
    expected = stack.expected(stream + more, cascade)[:, len(stream) :]
    got = stack.feed(memory, more[:11], 1, row)
    assert difference(got, expected[:, :11]) < 2e-6
    assert difference(stack.feed(memory, more[11:], 7, row), expected[:, 11:]) < 2e-6


def fail(stack: Stack, memory: Memory, fed: list[int], layer: int = 1) -> None:
    """A step in which the model raises after `layer` layers wrote."""
    with contextlib.suppress(RuntimeError):
        stack.step(memory, {0: fed}, fail_at=layer)


@pytest.mark.parametrize("cascade", [CASCADE, TWO, Cascade((Everything(),))], ids=["window", "two windows", "dense"])
@pytest.mark.parametrize("chunk", [1, 3, 30])
@pytest.mark.parametrize("start", [1, 5, 8, 25])
def test_rollback_is_as_if_never_fed(cascade: Cascade, chunk: int, start: int) -> None:
    stack, stream = Stack(windows=(None, 3)), tokens(start)
    memory = stack.memory(cascade)
    stack.feed(memory, stream, 7)
    mark = memory.mark(max_new=64)
    for seed in (1, 2):  # the mark stays open: a second attempt is taken back as well
        stack.feed(memory, tokens(17, seed), chunk)
        memory.rollback(mark)
        assert memory.length() == start
    memory.commit(mark)
    continues_as(stack, memory, cascade, stream)


def test_commit_keeps_what_happened() -> None:
    stack, stream = Stack(), tokens(30)
    memory = stack.memory(CASCADE)
    stack.feed(memory, stream[:10])
    mark = memory.mark()
    held = memory.nbytes
    stack.feed(memory, stream[10:])
    memory.commit(mark)
    assert memory.nbytes < held
    continues_as(stack, memory, CASCADE, stream)


def test_marks_nest() -> None:
    stack, stream = Stack(), tokens(40)
    memory = stack.memory(TWO)
    stack.feed(memory, stream[:12])
    outer = memory.mark(max_new=64)
    stack.feed(memory, stream[12:20], 3)
    inner = memory.mark()
    stack.feed(memory, stream[20:31], 1)
    memory.rollback(inner)
    assert memory.length() == 20
    stack.feed(memory, stream[20:25], 1)
    memory.commit(inner)
    with pytest.raises(NotRewindable, match="no such open mark at 20"):
        memory.rollback(inner)
    memory.rollback(outer)
    continues_as(stack, memory, TWO, stream[:12])


def test_committing_the_outer_mark_closes_the_inner() -> None:
    stack, memory = Stack(), Stack().memory(CASCADE)
    stack.feed(memory, tokens(12))
    outer, inner = memory.mark(), memory.mark()
    memory.commit(outer)
    for closed in (outer, inner):
        with pytest.raises(NotRewindable):
            memory.commit(closed)
    assert memory.nbytes == memory.budget_bytes


def test_marks_at_the_same_length_are_different_marks() -> None:
    """They were told apart by their length, so closing the inner of two marks without a token between closed both."""
    stack, stream = Stack(), tokens(20)
    memory = stack.memory(CASCADE)
    stack.feed(memory, stream)
    outer, inner = memory.mark(), memory.mark()
    memory.commit(inner)
    stack.feed(memory, tokens(9, 1), 2)
    memory.rollback(outer)
    continues_as(stack, memory, CASCADE, stream)


def test_rolling_back_the_outer_mark_closes_the_inner() -> None:
    stack, memory = Stack(), Stack().memory(CASCADE)
    stack.feed(memory, tokens(20))
    outer, inner = memory.mark(), memory.mark()
    memory.rollback(outer)
    with pytest.raises(NotRewindable):
        memory.rollback(inner)
    memory.rollback(outer)


def test_a_full_mark_refuses_the_step_and_nothing_is_harmed() -> None:
    stack, stream = Stack(), tokens(20)
    memory = stack.memory(CASCADE)
    stack.feed(memory, stream)
    mark = memory.mark(max_new=5)
    stack.feed(memory, tokens(3, 1), 1)
    for _ in range(2):
        with pytest.raises(NotRewindable, match="holds 5 entries and the step would evict 7"):
            stack.feed(memory, tokens(4, 2))
    assert memory.length() == 23
    stack.feed(memory, tokens(2, 3), 1)  # what fits still goes in
    memory.rollback(mark)
    memory.commit(mark)
    continues_as(stack, memory, CASCADE, stream)


def test_a_refused_step_leaves_the_marks_of_other_layers_and_rows_alone() -> None:
    """A full layer is found before any layer keeps anything.

    The layer without a window had already noted its victims when the layer with one refused; at the next step it noted
    them again, and the rollback put them into wrong slots.  The same between the rows of a step.
    """
    stack, cascade, stream = Stack(windows=(None, 4)), Cascade((Sinks(2), Window(12))), tokens(12)
    memory = stack.memory(cascade, rows=2)
    for row in range(2):
        stack.feed(memory, stream, row=row)
    marks = [memory.mark(0, max_new=64), memory.mark(1, max_new=7)]
    stack.step(memory, {0: tokens(4, 1), 1: tokens(4, 1)})  # 2 leave the long window, 4 the short one
    with pytest.raises(NotRewindable, match="holds 7 entries and the step would evict 8"):
        stack.step(memory, {0: tokens(4, 2), 1: tokens(4, 2)})
    stack.step(memory, {0: tokens(3, 3), 1: tokens(3, 3)})
    for row in range(2):
        memory.rollback(marks[row], row)
        memory.commit(marks[row], row)
        continues_as(stack, memory, cascade, stream, row)


@pytest.mark.parametrize("back", range(26))
def test_truncate_is_exact_or_refused(back: int) -> None:
    stack, stream = Stack(windows=(None, 5)), tokens(25)
    for cascade in (CASCADE, TWO, Cascade((Window(30), Window(3))), Cascade((Everything(),))):
        for steps in (1, 7, 64):
            memory = stack.memory(cascade)
            stack.feed(memory, stream, steps)
            try:
                memory.truncate(25 - back)
            except NotRewindable:
                assert back > 0
                continues_as(stack, memory, cascade, stream)
            else:
                continues_as(stack, memory, cascade, stream[: 25 - back])


def test_truncate_is_not_refused_without_need() -> None:
    stack, stream = Stack(), tokens(8)
    for cascade in (CASCADE, Cascade((Window(8), Window(1))), Cascade((Everything(),))):
        memory = stack.memory(cascade)
        stack.feed(memory, stream)
        memory.truncate(3)
        continues_as(stack, memory, cascade, stream[:3])


@pytest.mark.parametrize("length", range(20, 40))
def test_truncate_above_a_mark_is_exact_or_refused(length: int) -> None:
    """Entries that enter and leave within one step were never stored, so a length in its middle cannot be restored.

    It was allowed, because it lies above the mark, and the row went on with entries of the wrong tokens.
    """
    stack, stream, later = Stack(), tokens(20), tokens(20, 1)
    memory = stack.memory(CASCADE)
    stack.feed(memory, stream)
    mark = memory.mark(max_new=64)
    stack.feed(memory, later[:15])
    stack.feed(memory, later[15:], 1)
    exact = length == 20 or length >= 35
    if exact:
        memory.truncate(length)
        continues_as(stack, memory, CASCADE, (stream + later)[:length])
    else:
        with pytest.raises(NotRewindable, match=f"cannot return to {length}"):
            memory.truncate(length)
        memory.rollback(mark)
        continues_as(stack, memory, CASCADE, stream)


def test_truncating_below_a_mark_closes_it() -> None:
    stack, stream = Stack(), tokens(6)
    memory = stack.memory(CASCADE)
    stack.feed(memory, stream[:4])
    mark = memory.mark()
    stack.feed(memory, stream[4:])
    memory.truncate(3)
    assert memory.nbytes == memory.budget_bytes
    with pytest.raises(NotRewindable, match="open ones are none"):
        memory.rollback(mark)


def test_a_failed_step_breaks_its_rows_and_only_those() -> None:
    stack, streams = Stack(), [tokens(20, row) for row in range(3)]
    memory = stack.memory(CASCADE, rows=3)
    for row in range(3):
        stack.feed(memory, streams[row], row=row)
    with pytest.raises(RuntimeError):
        stack.step(memory, {0: [1, 2], 2: [3]}, fail_at=1)
    other = stack.memory(CASCADE)
    for action in (
        lambda: stack.feed(memory, [1], row=2),
        lambda: memory.save_row(2),
        lambda: memory.copy_row(2, other, 0),
        lambda: memory.mark(2),
        lambda: memory.shift(9, 2),
    ):
        with pytest.raises(MemoryStateError, match="row 2 was left half written by a failed step"):
            action()
    memory.reset(0)
    memory.copy_row(1, memory, 2)
    continues_as(stack, memory, CASCADE, [], 0)
    continues_as(stack, memory, CASCADE, streams[1], 1)
    continues_as(stack, memory, CASCADE, streams[1], 2)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("length", range(0, 13))
def test_after_a_failed_step_truncate_heals_exactly_or_refuses(length: int, layer: int) -> None:
    """A row of 12 tokens counted 12 after the failed step, and truncating it to 12 was taken for nothing to do."""
    stack, stream = Stack(windows=(None, None)), tokens(12)
    for fed in (1, 3, 9):
        for cascade in (CASCADE, TWO, Cascade((Window(20),)), Cascade((Window(14),))):
            memory = stack.memory(cascade)
            stack.feed(memory, stream)
            fail(stack, memory, tokens(fed, 2), layer)
            try:
                memory.truncate(length)
            except NotRewindable:
                with pytest.raises(MemoryStateError):
                    stack.feed(memory, [1])
                memory.reset()
                continues_as(stack, memory, cascade, [])
            else:
                continues_as(stack, memory, cascade, stream[:length])


def test_a_failed_step_is_taken_back_by_a_mark() -> None:
    stack, stream = Stack(), tokens(30)
    memory = stack.memory(TWO)
    stack.feed(memory, stream)
    mark = memory.mark()
    stack.feed(memory, tokens(4, 1), 1)
    fail(stack, memory, tokens(11, 2))
    memory.rollback(mark)
    continues_as(stack, memory, TWO, stream)


def test_the_naive_form_refuses_what_it_cannot_do() -> None:
    """truncate changed the count and kept the entries."""
    stack, stream = Stack(), tokens(6)
    memory = stack.memory(CASCADE, naive=True)
    stack.feed(memory, stream)
    for action in (
        lambda: memory.truncate(3),
        lambda: memory.mark(),
        lambda: memory.save_row(),
        lambda: memory.load_row({}, 3),
        lambda: memory.shift(5),
        lambda: memory.copy_row(0, memory, 0),
    ):
        with pytest.raises(MemoryStateError, match="naive"):
            action()
    continues_as(stack, memory, CASCADE, stream)
    memory.reset()
    continues_as(stack, memory, CASCADE, [])
