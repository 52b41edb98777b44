"""lserve: pages by bounds, per layer; the newest entries are always read."""

from __future__ import annotations

import pytest
import torch
from memory.stack import Stack, tokens
from memory.test_archive import archived

from penstock.errors import BudgetError, UsageError
from penstock.memory import Window
from penstock.memory.archive import Archive
from penstock.memory.retrieval import Bounds
from penstock.methods import parse
from penstock.methods.lserve import LServe


@pytest.mark.parametrize("budget", [24, 96, 512, 4096])
def test_shares_of_the_budget(budget: int) -> None:
    cascade = LServe().cascade(budget)
    archive = cascade.segments[-1]
    assert isinstance(archive, Archive)
    assert cascade.entries == budget
    assert archive.select == Bounds(8)
    assert archive.slots * archive.block <= 3 / 4 * budget
    assert not archive.by_head
    assert isinstance(cascade.segments[1], Window), "the newest entries are read whatever is chosen (card, check d)"


def test_pages_are_those_with_the_largest_shares() -> None:
    """By hand; a piece per key, so that the bound is the product."""
    stack = Stack(windows=(None,))
    memory = stack.memory(LServe(block=4).cascade(96))
    stack.feed(memory, tokens(600, seed=1), 64)
    blocks = archived(memory)
    query = torch.randn(2, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    chosen = blocks.choose(query, 6)  # [C, k]
    assert chosen.shape == (3, 6)
    keys = blocks.fetch(torch.arange(len(blocks))).key.unflatten(1, (-1, 4))  # [H, n, 4, D]
    for c in range(3):
        scores = torch.einsum("hntd,hgd->hgnt", keys, query[:, :, c]).amax(-1) * 8**-0.5
        assert chosen[c].tolist() == sorted(scores.softmax(-1).sum((0, 1)).topk(6).indices.tolist())


def test_refused() -> None:
    with pytest.raises(BudgetError, match="needs a budget"):
        LServe().cascade(None)
    with pytest.raises(UsageError, match="retrieved"):
        parse("lserve:retrieved=0.5")
    with pytest.raises(UsageError, match="one piece"):
        parse("lserve:pieces=0").cascade(512)
