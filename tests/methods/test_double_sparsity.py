"""double-sparsity: labels of a few channels choose what is read."""

from __future__ import annotations

import pytest
import torch
from memory.stack import Stack, tokens
from memory.test_archive import archived

from penstock.errors import BudgetError, UsageError
from penstock.memory.archive import Archive
from penstock.memory.retrieval import Channels
from penstock.methods import parse
from penstock.methods.double_sparsity import DoubleSparsity


@pytest.mark.parametrize("budget", [24, 96, 512, 4096])
def test_shares_of_the_budget(budget: int) -> None:
    cascade = DoubleSparsity().cascade(budget)
    archive = cascade.segments[-1]
    assert isinstance(archive, Archive)
    assert cascade.entries == budget
    assert archive.block == (8 if budget >= 128 else 4)
    assert archive.slots * archive.block <= 3 / 4 * budget
    assert not archive.by_head
    assert archive.select == Channels(16)


def test_labels_are_the_chosen_channels_of_every_key() -> None:
    """Card, check d; and with all channels the choice is that of the full products (check b)."""
    stack = Stack(windows=(None,))
    for channels in (3, 8):
        memory = stack.memory(DoubleSparsity(channels=channels).cascade(96))
        stack.feed(memory, tokens(600, seed=1), 64)
        blocks = archived(memory)
        assert blocks.table is not None
        keys = blocks.fetch(torch.arange(len(blocks))).key.unflatten(1, (-1, 4))  # [H, n, 4, D]
        labels = torch.cat(blocks.summary.parts)  # [n, H, 4, r]
        for h in range(2):
            assert torch.equal(labels[:, h], keys[h][..., blocks.table[h]])
        query = torch.randn(2, 2, 1, 8, generator=torch.Generator().manual_seed(0))
        total = torch.zeros(len(blocks))
        for h in range(2):
            part = query[h, :, 0][:, blocks.table[h]]
            scores = torch.einsum("ntd,gd->gnt", keys[h][..., blocks.table[h]], part).amax(-1) * 8**-0.5
            total += scores.softmax(-1).sum(0)
        assert blocks.choose(query, 5)[0].tolist() == sorted(total.topk(5).indices.tolist())


def test_refused() -> None:
    with pytest.raises(BudgetError, match="needs a budget"):
        DoubleSparsity().cascade(None)
    with pytest.raises(UsageError, match="retrieved"):
        parse("double-sparsity:retrieved=0.5")
    with pytest.raises(UsageError, match="channel"):
        parse("double-sparsity:channels=0").cascade(512)
