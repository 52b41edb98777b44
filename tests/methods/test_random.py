"""random: every old token is kept with equal chance, a sample of its seed alone."""

from __future__ import annotations

import pytest
import torch

from penstock.errors import BudgetError
from penstock.memory import Cascade, Sinks
from penstock.memory.retention import Sample, drawn
from penstock.methods.random import Random
from tests.memory.stack import Stack, tokens

from .kinds import Alone
from .retaining import held


def test_composition() -> None:
    assert Random().cascade(64) == Cascade((Sinks(4), Sample(44, 16)), "contiguous", 16)
    assert Random(seed=5).cascade(64).segments[1] == Sample(44, 16, seed=5)
    with pytest.raises(BudgetError, match="give at least 21"):
        Random().cascade(20)


def test_holds_the_highest_draws_of_all_that_is_old() -> None:
    """Unit by unit it keeps what one choice over the whole past would keep."""
    layer = Stack(windows=(None,))
    memory = layer.memory(Random(seed=2, sinks=3, unit=4, recent=0.4).cascade(30))
    for count in (40, 12, 140):
        layer.feed(memory, tokens(count, count), 9)
        length = memory.length()
        recent = range(length - 8, length)
        old = torch.arange(3, length - 8)
        highest = old[drawn(old, 2).argsort(descending=True)[: 23 - 8]]
        assert held(memory)[0] == sorted(highest.tolist()) + list(recent)


def test_every_old_token_has_the_same_chance() -> None:
    """600 seeds, 20 of 200 old tokens: each fifth of the past gets a fifth of 12,000, give or take 93 (times five)."""
    counts = torch.zeros(5)
    for seed in range(600):
        alone = Alone(Cascade((Sample(20, seed=seed),), "stream", 4), heads=1, width=1)
        alone.feed(torch.zeros(1, 200, 1), torch.zeros(200))
        counts += torch.histc(torch.tensor(alone.held()[0]).float(), 5, 0, 200)
    assert counts.sum() == 600 * 20
    assert (counts - 2400).abs().max() < 5 * 93
