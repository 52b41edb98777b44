"""The common parts of retention by score: choice, ties, shares of attention, samples."""

from __future__ import annotations

import pytest
import torch

from penstock.errors import BudgetError, CompositionError
from penstock.memory import Cascade, Sinks
from penstock.memory.retention import (
    HeavyHitters,
    LowestNorms,
    Sample,
    beside_sinks,
    best,
    check_unit,
    coarse,
    drawn,
)

from .stack import Stack, tokens


def test_best_keeps_recent_then_high_then_new() -> None:
    score = torch.tensor([[5.0, 1.0, 5.0, 5.0, 0.0, 0.0], [0.0, 3.0, 2.0, 1.0, 9.0, 0.0]])
    assert best(score, 3).tolist() == [[0, 2, 3], [1, 2, 4]]
    assert best(score, 2).tolist() == [[2, 3], [1, 4]]
    assert best(score, 3, recent=2).tolist() == [[3, 4, 5], [1, 4, 5]]
    assert best(score, 2, recent=2).tolist() == [[4, 5], [4, 5]]
    assert best(torch.zeros(1, 4), 2).tolist() == [[2, 3]]


def test_coarse_scores_forget_rounding_and_nothing_else() -> None:
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 100
    assert ((coarse(x) - x).abs() <= x / 1024).all()
    near = coarse(x * (1 + 1e-7))
    assert (near == coarse(x)).float().mean() > 0.99
    assert coarse(torch.tensor([0.0, -3.0])).tolist() == [0.0, -3.0]


@pytest.mark.parametrize("seed", [0, 1, -7, 1 << 70])
def test_drawn_numbers_are_uniform_and_of_their_seed(seed: int) -> None:
    """Of 40,000 numbers each tenth holds 4,000, give or take 60: five times that fails once in a million seeds."""
    x = drawn(torch.arange(40_000), seed)
    assert 0 <= float(x.min()) <= float(x.max()) < 1
    assert x.unique().numel() == len(x)
    counts = torch.histc(x.float(), 10, 0, 1)
    assert (counts - 4000).abs().max() < 300
    assert torch.equal(x, drawn(torch.arange(40_000), seed))
    assert not torch.equal(x, drawn(torch.arange(40_000), seed + 1))
    assert abs(float(torch.corrcoef(torch.stack([x[:-1], x[1:]]))[0, 1])) < 0.03


def test_declarations() -> None:
    assert LowestNorms(8).stays == 8
    assert LowestNorms(8, 2, 5).stays == 5
    for size, recent, after in ((0, 0, None), (4, 5, None), (8, 3, 2), (8, 0, 9)):
        with pytest.raises(BudgetError, match="raise the budget, or keep fewer recent"):
            LowestNorms(size, recent, after)
    for unit in (0, 3, 128):
        with pytest.raises(CompositionError, match="choose a power of two up to 64"):
            check_unit(unit)


def test_beside_sinks() -> None:
    made = beside_sinks(LowestNorms, 40, sinks=4, recent=0.5, unit=8, positions="stream")
    assert made == Cascade((Sinks(4), LowestNorms(28, 12)), "stream", 8)
    assert made.entries == 40
    assert beside_sinks(LowestNorms, 13, sinks=4, recent=1.0, unit=8, positions="stream").entries == 13
    with pytest.raises(BudgetError, match="give at least 13"):
        beside_sinks(LowestNorms, 12, sinks=4, recent=0.5, unit=8, positions="stream")
    with pytest.raises(BudgetError, match="needs a budget"):
        beside_sinks(LowestNorms, None, sinks=4, recent=0.5, unit=8, positions="stream")


def test_room_is_made_for_several_units_at_once() -> None:
    layer = Stack(windows=(None,))
    memory = layer.memory(Cascade((Sinks(0), LowestNorms(20, 4, 8)), "contiguous", 4))
    sizes = []
    for part in range(12):
        layer.feed(memory, tokens(4, part))
        sizes.append(len(memory.groups[0].lanes[0][0][0].states[1]["held"]))
    assert sizes == [4, 8, 12, 16, 20, 8, 12, 16, 20, 8, 12, 16]


@pytest.mark.parametrize("encoding", ["half", "interleaved", "partial", "alibi", "none"])
@pytest.mark.parametrize("positions", ["contiguous", "stream"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_attention_shares_sum_to_one(encoding: str, positions: str, softcap: float | None) -> None:
    """All mass that was given lies on what is held, while nothing was given up: one for each query."""
    layer = Stack(encoding, windows=(None,), softcap=softcap)
    memory = layer.memory(Cascade((HeavyHitters(64),), positions, 4))
    layer.feed(memory, tokens(40), 7)
    state = memory.groups[0].lanes[0][0][0].states[0]
    assert state["score"].shape == (2, 40)
    assert torch.allclose(state["score"].sum(1), torch.tensor(40.0 * 2), rtol=1e-5)


def test_a_sample_keeps_the_same_in_all_heads_and_layers() -> None:
    layer = Stack(windows=(None, None))
    memory = layer.memory(Cascade((Sample(12, 4, seed=3),), "contiguous", 4))
    layer.feed(memory, tokens(80), 7)
    held = [lane[0].states[0]["held"].seen for lane in memory.groups[0].lanes[0]]
    assert (held[0] == held[0][:1]).all()
    assert torch.equal(held[0], held[1])
