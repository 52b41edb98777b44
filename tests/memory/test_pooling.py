"""Pooling: weighted means, log-counts, and the sizes of frames."""

from __future__ import annotations

import math

import pytest
import torch

from penstock.errors import BudgetError, UsageError
from penstock.memory import Entries
from penstock.memory.attend import partial_math
from penstock.memory.pooling import directions, feature, frame_size, pooled


def entries(count: int, heads: int = 2) -> Entries:
    generator = torch.Generator().manual_seed(1)
    seen = torch.arange(count).expand(heads, -1)
    key, value = torch.randn(heads, count, 8, generator=generator), torch.randn(heads, count, 8, generator=generator)
    return Entries(key, value, seen, torch.ones(heads, count, dtype=torch.uint8))


def test_twice_is_as_once() -> None:
    """Means of means, weighted by what they stand for, are means of all."""
    given = entries(24)
    once, twice = pooled(given, 8), pooled(pooled(given, 2), 4)
    for h in range(2):
        for i in range(3):
            group = slice(8 * i, 8 * i + 8)
            assert torch.allclose(once.key[h, i], given.key[h, group].sum(0) / 8, atol=1e-6)
            assert torch.allclose(once.value[h, i], given.value[h, group].sum(0) / 8, atol=1e-6)
    assert torch.allclose(once.key, twice.key, atol=1e-6)
    assert torch.allclose(once.value, twice.value, atol=1e-6)
    assert once.bias is not None
    assert twice.bias is not None
    assert torch.allclose(once.bias, torch.full_like(once.bias, math.log(8)))
    assert torch.allclose(once.bias, twice.bias)
    assert once.seen.tolist() == [[7, 15, 23]] * 2
    assert twice.seen.tolist() == once.seen.tolist()
    assert pooled(pooled(given, 4), 1).seen.tolist() == pooled(given, 4).seen.tolist()


def test_unequal_weights() -> None:
    """An entry that stands for seven others weighs seven times as much."""
    given = entries(2, 1)
    both = Entries(given.key, given.value, given.seen, given.kind, bias=torch.tensor([[math.log(7.0), 0.0]]))
    one = pooled(both, 2)
    assert torch.allclose(one.key[0, 0], (7 * given.key[0, 0] + given.key[0, 1]) / 8, atol=1e-6)
    assert one.bias is not None
    assert one.bias.item() == pytest.approx(math.log(8.0))


def test_equal_entries_are_read_as_before() -> None:
    given = entries(4)
    same = given.take(torch.tensor([0, 0, 0, 1, 1, 1]))
    small = pooled(same, 3)
    query = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(2))
    whole = partial_math(query, same.key[None], same.value[None], scale=0.3)
    assert small.bias is not None
    less = partial_math(query, small.key[None], small.value[None], scale=0.3, mask=small.bias[None, :, None])
    assert torch.allclose(whole.out, less.out, atol=1e-6)
    assert torch.allclose(whole.lse, less.lse, atol=1e-6)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="5 entries cannot be pooled in groups of 2"):
        pooled(entries(5), 2)
    given = entries(4)
    with pytest.raises(ValueError, match="rotated keys"):
        pooled(Entries(given.key, given.value, given.seen, given.kind, turned=True), 2)


def test_directions_and_features_have_length_one() -> None:
    key = entries(6).key
    assert torch.allclose(directions(key).norm(dim=-1), torch.ones(2, 6))
    assert feature(key).norm().item() == pytest.approx(1.0)
    expected = torch.cat([key[0].sum(0), key[1].sum(0)])
    assert torch.allclose(feature(key), expected / expected.norm(), atol=1e-6)


def test_frames_by_the_budget() -> None:
    assert [frame_size("x", budget, 0, 20, 5) for budget in (24, 159, 160, 512, 1280, 9999)] == [4, 4, 8, 16, 64, 64]
    assert frame_size("x", 96, 16, 20, 5) == 16
    with pytest.raises(BudgetError, match="5 frames of 4 entries do not fit into a budget of 19: give at least 20"):
        frame_size("x", 19, 0, 20, 5)
    with pytest.raises(BudgetError, match="x needs a budget"):
        frame_size("x", None, 0, 20, 5)
    with pytest.raises(UsageError, match="a frame of 5 tokens is not possible in x"):
        frame_size("x", 96, 5, 20, 5)
