"""lserve: pages by bounds, per head; the newest entries are always read."""

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
    assert archive.by_head
    assert isinstance(cascade.segments[1], Window), "the newest entries are read whatever is chosen (card, check d)"


def test_heads_read_pages_of_their_own() -> None:
    stack = Stack(windows=(None,))
    memory = stack.memory(LServe(block=4).cascade(96))
    stack.feed(memory, tokens(600, seed=1), 64)
    blocks = archived(memory)
    query = torch.randn(2, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    chosen = blocks.choose(query, 6)  # [C, H, k]
    assert chosen.shape == (3, 2, 6)
    assert not torch.equal(chosen[:, 0], chosen[:, 1])
    keys = blocks.fetch(torch.arange(len(blocks)).expand(2, -1)).key.unflatten(1, (-1, 4))  # [H, n, 4, D]
    for c in range(3):
        for h in range(2):  # a piece per key: the bound is the product
            scores = torch.einsum("ntd,gd->gnt", keys[h], query[h, :, c]).amax(-1).sum(0)
            assert chosen[c, h].tolist() == sorted(scores.topk(6).indices.tolist())


def test_refused() -> None:
    with pytest.raises(BudgetError, match="needs a budget"):
        LServe().cascade(None)
    with pytest.raises(UsageError, match="one piece"):
        parse("lserve:pieces=0").cascade(512)
