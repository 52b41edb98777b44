"""merge: counts add up, means are means, and the nearest is the nearest."""

from __future__ import annotations

import pytest
import torch

from penstock.errors import BudgetError
from penstock.memory import Cascade, Memory, Sinks, Window
from penstock.memory.parts import State
from penstock.methods.merge import MergeMethod, Nearest
from tests.memory.stack import Stack, difference, tokens

UNIT, SINKS, WINDOW, SIZE = 4, 4, 8, 8


def composed() -> Cascade:
    return Cascade((Sinks(SINKS), Window(WINDOW), Nearest(SIZE)), "contiguous", UNIT)


def stored(memory: Memory) -> State:
    return memory.groups[0].lanes[0][0][0].states[2]


def test_composition() -> None:
    assert MergeMethod(unit=4).cascade(24) == composed()
    assert MergeMethod().cascade(96).segments == (Sinks(4), Window(38), Nearest(38))
    assert MergeMethod(window=1.0, unit=4).cascade(24).segments[1:] == (Window(15), Nearest(1))
    assert MergeMethod(window=0.0, unit=4).cascade(24).segments[1:] == (Window(1), Nearest(15))
    with pytest.raises(BudgetError, match="too small for merge: give at least 22"):
        MergeMethod().cascade(21)


def test_the_store_is_that_of_a_loop() -> None:
    layer, stream = Stack("none", (None,)), tokens(120)
    memory = layer.memory(composed())
    layer.feed(memory, stream, 13)
    state, gone = stored(memory), torch.tensor(stream[SINKS:-WINDOW])
    for head in range(layer.kv_heads):
        keys, values = (t[0, gone, head].double() for t in (layer.keys, layer.values))
        members = [[i] for i in range(SIZE)]
        for start in range(SIZE, len(gone), UNIT):
            means = torch.stack([keys[m].mean(0) for m in members])
            for j in range(start, start + UNIT):
                near = torch.cosine_similarity(keys[j], means, dim=1)
                members[int((near > near.max() - 1e-6).nonzero()[0])].append(j)
            assert sum(len(m) for m in members) == start + UNIT
        assert state["count"][head].tolist() == [len(m) for m in members]
        assert state["held"].seen[head].tolist() == [SINKS + m[-1] for m in members]
        for table, held in ((keys, state["held"].key[head]), (values, state["held"].value[head])):
            assert difference(held, torch.stack([table[m].mean(0) for m in members])) < 1e-5
        assert difference(state["held"].bias[head].exp(), state["count"][head]) < 1e-5


def test_nothing_lost_when_keys_repeat() -> None:
    """As many places as there are different keys: all of the stream is attended to, exactly."""
    layer = Stack("none", (None,))
    stream = [0, 1, 2, 3, *(4 + i % SIZE for i in range(120))]
    memory = layer.memory(composed())
    assert difference(layer.feed(memory, stream, 7), layer.feed(layer.memory(Cascade((Window(999),))), stream)) < 1e-5
    assert int(stored(memory)["count"].sum()) == 2 * (len(stream) - SINKS - WINDOW)
    plain = layer.feed(layer.memory(Cascade((Sinks(SINKS), Window(WINDOW + SIZE)), "stream", UNIT)), stream)
    assert difference(plain, layer.feed(layer.memory(Cascade((Window(999),))), stream)) > 1e-3
