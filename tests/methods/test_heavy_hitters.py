"""heavy-hitters: what stays is what a literal sum of attention says, and the answers follow."""

from __future__ import annotations

import pytest
import torch

from penstock.errors import BudgetError, CompositionError
from penstock.memory import Cascade, Sinks
from penstock.memory.retention import HeavyHitters
from penstock.methods.heavy_hitters import HeavyHitter
from tests.memory.stack import Stack, difference, tokens

from .retaining import Loop, by_score, held


def test_composition() -> None:
    assert HeavyHitter().cascade(64) == Cascade((Sinks(4), HeavyHitters(44, 16)), "contiguous", 16)
    assert HeavyHitter().cascade(64).entries == 64
    assert HeavyHitter(decay=0.5, recent=0, sinks=0, unit=4).cascade(64).segments[1] == HeavyHitters(60, decay=0.5)
    with pytest.raises(BudgetError, match="a budget of 20 has no room beside 4 sinks and a unit of 16"):
        HeavyHitter().cascade(20)
    with pytest.raises(BudgetError, match="needs a budget"):
        HeavyHitter().cascade(None)
    with pytest.raises(CompositionError, match="power of two"):
        HeavyHitter(unit=5).cascade(64)


@pytest.mark.parametrize("positions", ["contiguous", "stream"])
@pytest.mark.parametrize("sinks", [0, 3])
def test_equals_the_literal_sum_of_attention(positions: str, sinks: int) -> None:
    layer, stream = Stack(windows=(None,)), tokens(90, 1)
    memory = layer.memory(Cascade((Sinks(sinks), HeavyHitters(16, 6)), positions, 4))
    loop = Loop(layer, sinks, 4, positions, by_score(lambda e: e.mass, 16, 6))
    expected = loop.feed(stream)
    got = layer.feed(memory, stream, 7)[0]
    assert difference(got, expected) < 1e-5
    assert held(memory) == [h[: len(h) - 2] for h in loop.held()]  # two tokens wait in the tail
    mass = [[e.mass for e in entries if sinks <= e.seen < 88] for entries in loop.heads]
    assert held(memory)[0] != held(memory)[1], "heads choose for themselves"
    score = memory.groups[0].lanes[0][0][0].states[1]["score"]
    tail = torch.tensor([[sum(v for v in e.unit.values()) for e in h if sinks <= e.seen < 88] for h in loop.heads])
    assert difference(score, torch.tensor(mass) - tail) < 1e-5


def test_decay_lets_the_old_be_overtaken() -> None:
    """With the plain sum the first favourites stay for ever; with a strong decay they must be asked for again."""
    layer, stream = Stack(windows=(None,)), tokens(400, 2)
    ages = []
    for decay in (1.0, 0.5):
        memory = layer.memory(Cascade((Sinks(0), HeavyHitters(16, 4, decay=decay)), "contiguous", 4))
        layer.feed(memory, stream)
        ages.append(sum(sum(h) for h in held(memory)))
    assert ages[0] < ages[1]
