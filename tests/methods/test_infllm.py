"""infllm: the shares of the budget, and what far entries look like to a query."""

from __future__ import annotations

import pytest
import torch
from memory.stack import Stack, difference, tokens

from penstock.errors import BudgetError, UsageError
from penstock.memory import Sinks, Window
from penstock.memory.archive import Archive
from penstock.memory.positions import Rotary
from penstock.methods import parse
from penstock.methods.infllm import InfLLM


@pytest.mark.parametrize("budget", [24, 96, 512, 1000, 4096])
def test_shares_of_the_budget(budget: int) -> None:
    cascade = InfLLM().cascade(budget)
    sinks, window, archive = cascade.segments
    assert isinstance(sinks, Sinks)
    assert isinstance(window, Window)
    assert isinstance(archive, Archive)
    assert cascade.entries == budget
    assert sinks.size == max(1, budget // 16)
    assert budget / 2 - archive.block < archive.slots * archive.block <= budget / 2
    assert not archive.by_head
    assert 4 <= archive.block <= max(4, budget // 16)
    assert 1024 % cascade.unit == 0


def test_far_entries_stand_at_one_distance() -> None:
    """Slots for all blocks: dense attention in which what left the window is `cap` away (card, check b)."""
    stack, stream = Stack(windows=(None,)), tokens(60, seed=2)
    cascade = InfLLM(block=4).cascade(96)
    assert cascade.positions == "clamped"
    got = stack.feed(stack.memory(cascade), stream, 8)[0, -1]  # the last query: [Hq, D]
    ids, now, cap = torch.tensor(stream), len(stream) - 1, 95
    whole = now // cascade.unit * cascade.unit
    far = range(cascade.sinks, whole - cascade.windows[0])
    rotary = stack.geometry.layers[0].encoding
    assert isinstance(rotary, Rotary)
    assert len(far) > 8
    distance = torch.tensor([cap if i in far else min(now, cap) - i if i < cascade.sinks else now - i
                             for i in range(now + 1)])  # fmt: skip
    for head in range(4):
        key, value = stack.keys[0, ids, head // 2].double(), stack.values[0, ids, head // 2].double()
        query = stack.queries[0, ids[-1], head].double()
        turned = rotary.rotate(key[None], rotary.angles(-distance))[0]
        weights = torch.softmax(turned @ query * stack.scale, 0)
        assert difference((weights @ value)[None], got[head][None].double()) < 1e-5


def test_refused() -> None:
    with pytest.raises(BudgetError, match="needs a budget"):
        InfLLM().cascade(None)
    with pytest.raises(BudgetError, match="at least 24"):
        InfLLM().cascade(12)
    with pytest.raises(BudgetError, match="folder"):
        InfLLM(disk="1GiB").cascade(512)
    with pytest.raises(BudgetError, match="cannot read the budget"):
        InfLLM(ram="much").cascade(512)
    with pytest.raises(UsageError, match="retrieved"):
        parse("infllm:retrieved=0.5")
    with pytest.raises(UsageError, match="representative"):
        parse("infllm:representatives=0").cascade(512)
