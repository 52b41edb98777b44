"""rekv: nothing is retrieved while the stream is read; a question retrieves, and leaves no trace."""

from __future__ import annotations

import pytest
import torch
from memory.stack import Stack, tokens
from memory.test_archive import ask

from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Sinks, Window
from penstock.memory.archive import Archive
from penstock.methods import parse
from penstock.methods.rekv import ReKV


@pytest.mark.parametrize("budget", [24, 96, 512, 4096])
def test_shares_of_the_budget(budget: int) -> None:
    """A query reads the budget at most (card, check c)."""
    cascade = ReKV().cascade(budget)
    archive = cascade.segments[-1]
    assert isinstance(archive, Archive)
    assert cascade.entries == budget
    assert archive.slots * archive.block <= 3 / 4 * budget
    assert not archive.by_head
    assert 1024 % cascade.unit == 0


def test_reading_is_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the stream is read, the archive fetches nothing."""
    stack = Stack()
    cascade = ReKV(positions="stream").cascade(96)
    memory = stack.memory(cascade)
    with monkeypatch.context() as patch:
        patch.setattr("penstock.memory.tiers.BlockStore.fetch", lambda *_: pytest.fail("fetched"))
        stack.feed(memory, tokens(500), 64)
    assert torch.isfinite(ask(stack, memory, tokens(5))).all()
    assert memory.ram_bytes > 0


def test_a_question_sees_what_left_the_window() -> None:
    """One token stands out, far back; only a question finds it."""
    stack, far = Stack(windows=(None,)), 7
    stack.values[:, far] = 100.0
    stack.keys[:, far] = stack.queries[:, 9].view(1, 2, 2, -1).sum(2) * 3
    stream = [t for t in tokens(900, seed=4) if t != far]
    stream[200:204] = [far] * 4
    cascade = ReKV(block=4, positions="clamped").cascade(96)
    assert isinstance(cascade, Cascade)
    memory = stack.memory(cascade)
    stack.feed(memory, stream, 64)
    found = ask(stack, memory, [9])
    read = stack.memory(cascade)
    stack.feed(read, stream, 64)
    assert float(found.abs().max()) > 50
    assert float(stack.feed(read, [9]).abs().max()) < 10


def test_first_tokens_stay() -> None:
    sinks, window, _ = ReKV().cascade(1024).segments
    assert isinstance(sinks, Sinks)
    assert isinstance(window, Window)
    assert sinks.size == 16


def test_refused() -> None:
    with pytest.raises(BudgetError, match="needs a budget"):
        ReKV().cascade(None)
    with pytest.raises(BudgetError, match="at least 24"):
        ReKV().cascade(8)
    with pytest.raises(UsageError, match="retrieved"):
        parse("rekv:retrieved=0.5")
