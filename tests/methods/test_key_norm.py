"""key-norm: the lowest norms stay, by a literal loop; equal keys by age."""

from __future__ import annotations

import pytest

from penstock.errors import BudgetError, CompositionError
from penstock.memory import Cascade, Sinks
from penstock.memory.retention import LowestNorms
from penstock.methods.key_norm import KeyNorm
from tests.memory.stack import Stack, difference, tokens

from .retaining import Loop, by_score, held


def test_composition() -> None:
    assert KeyNorm().cascade(64) == Cascade((Sinks(4), LowestNorms(44, 16)), "contiguous", 16)
    assert KeyNorm(positions="stream", unit=8).cascade(32) == Cascade((Sinks(4), LowestNorms(20, 8)), "stream", 8)
    with pytest.raises(BudgetError, match="give at least 21"):
        KeyNorm().cascade(20)
    with pytest.raises(CompositionError, match="power of two"):
        KeyNorm(unit=0).cascade(64)


@pytest.mark.parametrize("positions", ["contiguous", "stream"])
def test_equals_the_literal_choice(positions: str) -> None:
    layer, stream = Stack(windows=(None,)), tokens(96, 1)
    memory = layer.memory(Cascade((Sinks(3), LowestNorms(14, 4)), positions, 8))
    loop = Loop(layer, 3, 8, positions, by_score(lambda e: -float(e.key.norm()), 14, 4))
    expected = loop.feed(stream)
    assert difference(layer.feed(memory, stream, 5)[0], expected) < 1e-5
    assert held(memory) == loop.held()


def test_what_stays_is_lower_than_what_left() -> None:
    layer, stream = Stack(windows=(None,)), tokens(200, 3)
    memory = layer.memory(Cascade((LowestNorms(20),), "contiguous", 4))
    layer.feed(memory, stream)
    norms = layer.keys[0].norm(dim=-1)  # [V, H]
    for h, kept in enumerate(held(memory, 0)):
        gone = [norms[token, h] for i, token in enumerate(stream) if i not in kept]
        assert max(norms[stream[i], h] for i in kept) <= min(gone) * 1.01
