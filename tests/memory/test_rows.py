"""What can be done to one row: save, load, copy, shift, reset; and that rows lead separate lives."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load as read
from safetensors.torch import save as write

from penstock.errors import CompositionError, MemoryStateError
from penstock.memory import Cascade, Everything, Sinks, Window

from .stack import Stack, difference, encodings, tokens

CASCADES = {
    "sinks and window": Cascade((Sinks(2), Window(6)), "clamped"),
    "two windows": Cascade((Sinks(2), Window(4), Window(3)), "clamped"),
    "everything": Cascade((Everything(),)),
}
FULL = CASCADES["sinks and window"]


@pytest.mark.parametrize("cascade", CASCADES.values(), ids=CASCADES)
@pytest.mark.parametrize("length", [0, 1, 5, 8, 30, 300])
@pytest.mark.parametrize("cut", [1, 7])
def test_save_and_load_continue_bit_identically(cascade: Cascade, length: int, cut: int) -> None:
    """Through the bytes of a file, into another row of a memory that was used before."""
    stack, stream = Stack(windows=(None, 3)), tokens(length)
    memory, other = stack.memory(cascade, 2), stack.memory(cascade, 2)
    if length:
        stack.feed(memory, stream, cut, row=1)
    stack.feed(other, tokens(50, 9), row=0)
    other.load_row(read(write(memory.save_row(1))), length, row=0)
    assert other.length(0) == length
    again = other.save_row(0)
    assert all(torch.equal(again[name], t) for name, t in memory.save_row(1).items())
    for chunk, fed in ((1, tokens(5, 1)), (9, tokens(30, 2)), (1, tokens(12, 3))):
        assert torch.equal(stack.feed(memory, fed, chunk, row=1), stack.feed(other, fed, chunk, row=0))


def test_saved_entries_are_in_stream_order() -> None:
    """Whatever slot an entry has: its value names the token that it came from."""
    stack, stream = Stack(), tokens(33)
    memory = stack.memory(FULL)
    stack.feed(memory, stream[:30], 5)
    stack.feed(memory, stream[30:], 1)  # turns the sinks' keys where they are read
    saved = memory.save_row()
    for layer in range(2):
        held = torch.tensor(stream[-6:])
        assert torch.equal(saved[f"{layer}.0.window"][1], stack.values[layer, held].transpose(0, 1))
        assert torch.equal(saved[f"{layer}.sink_keys"], stack.keys[layer, torch.tensor(stream[:2])].transpose(0, 1))
    assert all(t.device.type == "cpu" for t in saved.values())


def test_a_saved_state_does_not_change_with_its_memory() -> None:
    stack, memory = Stack(), Stack().memory(FULL)
    stack.feed(memory, tokens(20))
    saved = memory.save_row()
    before = {name: t.clone() for name, t in saved.items()}
    stack.feed(memory, tokens(20, 1), 1)
    assert all(torch.equal(saved[name], t) for name, t in before.items())


@pytest.mark.parametrize(
    ("cascade", "dtype", "length", "words"),
    [
        (Cascade((Sinks(2), Window(4)), "clamped"), torch.float32, 20, r"0.0.window is torch.float32 \[2, 2, 4, 8\]"),
        (Cascade((Window(6),)), torch.float32, 20, "0.sink_keys is nothing"),
        (FULL, torch.bfloat16, 20, "0.0.window is torch.bfloat16"),
        (FULL, torch.float32, 7, r"should be torch.float32 \[2, 2, 5, 8\]"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_without_harm(
    cascade: Cascade, dtype: torch.dtype, length: int, words: str
) -> None:
    stack, memory, stream = Stack(), Stack().memory(FULL), tokens(20)
    other = Stack(dtype=dtype).memory(cascade)
    Stack(dtype=dtype).feed(other, tokens(20, 1))
    stack.feed(memory, stream)
    with pytest.raises(CompositionError, match=words):
        memory.load_row(other.save_row(), length)
    got = stack.feed(memory, tokens(9, 2), 2)
    assert difference(got, stack.expected(stream + tokens(9, 2), FULL)[:, 20:]) < 2e-6


@pytest.mark.parametrize("cascade", CASCADES.values(), ids=CASCADES)
@pytest.mark.parametrize("length", [1, 8, 30, 300])
def test_a_copy_and_its_original_do_not_affect_each_other(cascade: Cascade, length: int) -> None:
    stack, stream = Stack(windows=(None, 3)), tokens(length)
    memory, other = stack.memory(cascade, 3), stack.memory(cascade, 1)
    stack.feed(memory, stream, 7, row=0)
    memory.copy_row(0, memory, 2)
    memory.copy_row(0, other, 0)
    for i, (where, row) in enumerate([(memory, 2), (memory, 0), (other, 0)]):
        mine = tokens(25, 20 + i)
        expected = stack.expected(stream + mine, cascade)[:, length:]
        assert difference(stack.feed(where, mine[:9], 1, row), expected[:, :9]) < 2e-6
        assert difference(stack.feed(where, mine[9:], 7, row), expected[:, 9:]) < 2e-6


def test_a_copy_has_no_marks() -> None:
    stack, memory = Stack(), Stack().memory(FULL, 2)
    stack.feed(memory, tokens(20))
    mark = memory.mark(max_new=3)
    memory.copy_row(0, memory, 1)
    stack.feed(memory, tokens(20, 1), row=1)  # no mark that could be full
    memory.rollback(mark)
    assert difference(stack.feed(memory, [7], 1), stack.expected([*tokens(20), 7], FULL)[:, -1:]) < 2e-6


def test_a_row_fits_only_the_same_composition() -> None:
    stack = Stack()
    memory, other = stack.memory(FULL), stack.memory(Cascade((Sinks(2), Window(7)), "clamped"))
    with pytest.raises(CompositionError, match="same composition"):
        memory.copy_row(0, other, 0)


def test_rows_join_leave_and_reset_without_notice() -> None:
    """Five rows come and go in one memory; each answers as it would alone."""
    stack, rows = Stack(windows=(None, 3)), 3
    memory = stack.memory(FULL, rows)
    lives: list[list[int]] = [[] for _ in range(rows)]
    for turn in range(40):
        packed = {}
        for row in range(rows):
            if (turn + row) % 5 == 4:
                continue  # sits this step out
            packed[row] = tokens(1 + (turn * (row + 1)) % 4 if turn % 2 else 1, seed=100 * row + turn)
        got = stack.step(memory, packed)
        for row, fed in packed.items():
            lives[row] += fed
            expected = stack.expected(lives[row], FULL)[:, -len(fed) :]
            assert difference(got[row], expected) < 2e-6, f"row {row}, turn {turn}"
        if turn % 9 == 8:
            gone = turn % rows
            memory.reset(gone)
            lives[gone] = []


@pytest.mark.parametrize("encoding", encodings(8, 4))
@pytest.mark.parametrize("policy", ["clamped", "contiguous", "stream"])
def test_shift_is_as_if_others_had_passed(encoding: str, policy: str) -> None:
    """The same sinks and the same window 500 tokens later: read for real, and shifted."""
    stack, cascade = Stack(encoding), Cascade((Sinks(2), Window(6)), policy)
    sinks, newest, more = tokens(2, 1), tokens(6, 2), tokens(20, 3)
    far, shifted = stack.memory(cascade), stack.memory(cascade)
    stack.feed(far, sinks + tokens(500, 4) + newest)
    stack.feed(shifted, sinks + newest)
    shifted.shift(500)
    assert shifted.length() == far.length() == 508
    for chunk, part in ((1, more[:9]), (7, more[9:])):
        assert difference(stack.feed(shifted, part, chunk), stack.feed(far, part, chunk)) < 2e-6
    assert [v.seen for v in shifted.view()] == [v.seen for v in far.view()]


@pytest.mark.parametrize("by", [4_194_304, 4_194_307, 2**40 + 1])
def test_far_positions_are_like_near_ones(by: int) -> None:
    stack, more = Stack(), tokens(30, 3)
    near, far = stack.memory(FULL), stack.memory(FULL)
    for memory in (near, far):
        stack.feed(memory, tokens(20))
    far.shift(by)
    assert difference(stack.feed(far, more[:15], 1), stack.feed(near, more[:15], 1)) < 2e-6
    assert difference(stack.feed(far, more[15:], 7), stack.feed(near, more[15:], 7)) < 2e-6


def test_only_a_full_memory_can_be_shifted() -> None:
    stack = Stack()
    for cascade, length in ((FULL, 7), (CASCADES["everything"], 20), (CASCADES["two windows"], 8)):
        memory = stack.memory(cascade)
        stack.feed(memory, tokens(length))
        with pytest.raises(MemoryStateError, match="read more first"):
            memory.shift(100)
    memory = stack.memory(FULL)
    stack.feed(memory, tokens(20))
    memory.mark()
    with pytest.raises(MemoryStateError, match="without marks"):
        memory.shift(100)


def test_reset_forgets_even_nan() -> None:
    """A stream whose values overflowed left NaN in slots that its successor reads with weight zero: NaN for ever.

    Also when a saved row is loaded over it, and when the step that wrote it is taken back.
    """
    stack, poisoned, stream = Stack(), Stack(), tokens(3)
    poisoned.values[:], poisoned.keys[:] = float("nan"), float("inf")

    def answers(memory_length: int) -> None:
        got = torch.cat((stack.feed(memory, tokens(4, 1), 1), stack.feed(memory, tokens(9, 2), 7)), dim=1)
        expected = stack.expected([*stream[:memory_length], *tokens(4, 1), *tokens(9, 2)], FULL)[:, memory_length:]
        assert difference(got, expected) < 2e-6

    memory = stack.memory(FULL)
    poisoned.feed(memory, tokens(20), 1)
    memory.reset()
    answers(0)

    clean = stack.memory(FULL)
    stack.feed(clean, stream)
    poisoned.feed(memory, tokens(20), 1)
    memory.load_row(clean.save_row(), 3)
    answers(3)

    memory.reset()
    stack.feed(memory, stream)
    poisoned.feed(memory, tokens(4), 1)
    memory.truncate(3)
    answers(3)
