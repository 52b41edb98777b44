"""Selectors: what a summary says of a block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from penstock.errors import UsageError
from penstock.memory.retrieval import Bounds, Channels, Mean, Representatives, Selector, shares

H, G, D, B = 2, 3, 8, 16


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def summed_up(selector: Selector, keys: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """(summaries [n, H, r, D'], projected queries) of keys [n, H, B, D]."""
    table = selector.calibrate(keys[0], query)
    return selector.summary(keys, selector.chosen(keys, query), table), selector.project(query, table)


def products(keys: Tensor, query: Tensor) -> Tensor:
    """[H, g, C, n, B]: every query with every key, by loops."""
    out = torch.zeros(H, G, query.shape[2], len(keys), keys.shape[2])
    for n, block in enumerate(keys):
        for h in range(H):
            for t in range(keys.shape[2]):
                out[h, :, :, n, t] = (query[h] * block[h, t]).sum(-1)
    return out


def test_the_mean_scores_as_the_mean_of_the_products() -> None:
    keys, query = random(5, H, B, D), random(H, G, 4, D, seed=1)
    summary, asked = summed_up(Mean(), keys, query)
    torch.testing.assert_close(Mean().score(summary, asked), products(keys, query).mean(-1))


def test_bounds_bound_and_pieces_tighten_them() -> None:
    """True maximum <= score of four pieces <= score of one (card lserve, check b)."""
    keys, query = random(5, H, B, D), random(H, 1, 4, D, seed=1)
    true = products(keys, query.expand(H, G, 4, D)).amax(-1)[:, :1]
    scores = []
    for pieces in (4, 1):
        summary, asked = summed_up(Bounds(pieces), keys, query)
        assert summary.shape == (5, H, 2 * pieces, D)
        scores.append(Bounds(pieces).score(summary, asked))
    assert (true <= scores[0] + 1e-5).all()
    assert (scores[0] <= scores[1] + 1e-5).all()
    assert (scores[0] < scores[1] - 1e-3).any()
    summary, asked = summed_up(Bounds(B), keys, query)  # a piece per key: the bound is the product
    torch.testing.assert_close(Bounds(B).score(summary, asked), true)


def test_representatives_are_the_keys_that_are_attended_to() -> None:
    keys, query = random(1, H, B, D), random(H, G, 4, D, seed=1)
    summary, _ = summed_up(Representatives(3), keys, query)
    for h in range(H):
        mass = torch.zeros(B)
        for g in range(G):
            for c in range(4):
                mass += torch.softmax(keys[0, h] @ query[h, g, c] / D**0.5, 0)
        best = sorted(mass.argsort(descending=True)[:3].tolist())
        assert torch.equal(summary[0, h], keys[0, h, best])


def test_all_channels_score_as_the_best_product() -> None:
    """Card double-sparsity, checks b and d: with all channels the labels are the keys."""
    keys, query = random(5, H, B, D), random(H, G, 4, D, seed=1)
    summary, asked = summed_up(Channels(D), keys, query)
    assert torch.equal(summary, keys)
    torch.testing.assert_close(Channels(D).score(summary, asked), products(keys, query).amax(-1))


def test_channels_are_those_where_queries_and_keys_are_large() -> None:
    keys, query = random(3, H, B, D) * 0.1, random(H, G, 4, D, seed=1) * 0.1
    keys[..., 5] += 3
    query[..., 5] += 3
    keys[..., 2] += 9  # large keys that no query asks for
    query[..., 2] = 0
    keys[..., 7] += 2
    query[..., 7] += 2
    table = Channels(2).calibrate(keys[0], query)
    assert table.tolist() == [[5, 7]] * H
    assert torch.equal(Channels(2).summary(keys, None, table), keys[..., [5, 7]])


@pytest.mark.parametrize("selector", [Mean(), Representatives(3), Bounds(2), Channels(4)])
def test_summaries_of_blocks_are_made_one_by_one(selector: Selector) -> None:
    """Alone or with others, at once or made again from what a block remembers."""
    keys, query = random(6, H, B, D), random(H, G, 4, D, seed=1)
    chosen, table = selector.chosen(keys, query), selector.calibrate(keys[0], query)
    whole = selector.summary(keys, chosen, table)
    assert whole.shape == (6, H, selector.rows(B), selector.width(D))
    assert (chosen is not None) == selector.marks(B)
    for i in range(6):
        mark = None if chosen is None else chosen[i : i + 1]
        torch.testing.assert_close(selector.summary(keys[i : i + 1], mark, table), whole[i : i + 1])
    assert selector.points(whole).shape[:2] == (6, H)


def test_shares_weigh_heads_alike() -> None:
    """Every head gives one in all; a head that adds a constant to all of its scores says the same."""
    scores = random(H, G, 4, 20) * torch.tensor([1.0, 5.0, 50.0])[:, None, None]
    given = shares(scores)
    torch.testing.assert_close(given.sum(-1), torch.ones(H, G, 4))
    torch.testing.assert_close(given, shares(scores + 7), atol=1e-5, rtol=1e-4)
    by_hand = torch.tensor([[2.0, 0.0, 0.0]]).exp() / (torch.tensor(2.0).exp() + 2)
    torch.testing.assert_close(shares(torch.tensor([[2.0, 0.0, 0.0]])), by_hand)


def test_refused() -> None:
    for make in (Representatives, Bounds, Channels):
        with pytest.raises(UsageError):
            make(0)
