"""hybrid-forcing against its card: checks (a) to (c), and what a query reads against a literal loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Memory, Sinks, Window
from penstock.memory.parts import State
from penstock.methods.hybrid_forcing import HybridForcing, Linear, SparseWindow
from tests.memory.stack import Stack, difference, tokens

BUDGET, UNIT, SINKS, WINDOW = 32, 4, 4, 24


def stack(**settings: object) -> Stack:
    return Stack(windows=(None,), **settings)  # type: ignore[arg-type]


def composed(**options: object) -> Cascade:
    settings: dict[str, object] = {"sinks": SINKS, "unit": UNIT, "ratio": 1.0, "gain": 0.0, **options}
    return HybridForcing(**settings).cascade(BUDGET)  # type: ignore[arg-type]


def absorbed(memory: Memory) -> State:
    return memory.groups[0].lanes[0][0][0].states[2]


def test_composition() -> None:
    parts = (Sinks(SINKS), SparseWindow(WINDOW, 0.2, UNIT), Linear(0.5, "paper"))
    assert composed(ratio=0.2, gain=0.5, features="paper") == Cascade(parts, "clamped", UNIT)
    assert HybridForcing().cascade(96).segments[:2] == (Sinks(32), SparseWindow(48, 0.2, 16))
    assert HybridForcing().lossless() == HybridForcing(gain=0.0, ratio=1.0)
    with pytest.raises(BudgetError, match=r"too small for hybrid-forcing: give at least 25"):
        HybridForcing(sinks=8).cascade(24)
    with pytest.raises(UsageError, match=r"ratio cannot be 2\.0"):
        HybridForcing(ratio=2.0).cascade(96)


@pytest.mark.parametrize("positions", ["clamped", "contiguous"])
def test_a_switched_off_it_is_a_window(positions: str) -> None:
    layer, stream = stack(), tokens(130)
    plain = layer.feed(layer.memory(Cascade((Sinks(SINKS), Window(WINDOW)), positions, UNIT)), stream, 7)
    assert torch.equal(layer.feed(layer.memory(composed(positions=positions)), stream, 7), plain)
    for on in ({"gain": 0.1}, {"ratio": 0.5}):
        got = layer.feed(layer.memory(composed(positions=positions, **on)), stream, 7)
        assert difference(got, plain) > 1e-3


@pytest.mark.parametrize("chunk", [1, 7, 16, None])
@pytest.mark.parametrize("features", ["paper", "relu"])
def test_b_the_state_is_the_mean_over_all_absorbed(chunk: int | None, features: str) -> None:
    layer, stream = stack(), tokens(120)
    memory = layer.memory(composed(features=features, positions="contiguous"))
    layer.feed(memory, stream, chunk)
    state, gone = absorbed(memory), torch.tensor(stream[SINKS : len(stream) - WINDOW])
    key, value = (t[0, gone].double().transpose(0, 1) for t in (layer.keys, layer.values))
    left = key if features == "paper" else key.relu()
    assert difference(state["products"], torch.einsum("htd,hte->hde", left, value) / len(gone)) < 1e-5
    assert difference(state["keys"], key.relu().mean(1)) < 1e-5


def test_c_each_entry_is_absorbed_once() -> None:
    layer, memory, fed = stack(), stack().memory(composed()), 0
    for count in (3, 1, 20, 1, 40, 7, 64):
        layer.feed(memory, tokens(count, count))
        fed += count
        left = fed // UNIT * UNIT - SINKS - WINDOW
        assert int(absorbed(memory)["count"]) == max(0, left)


@pytest.mark.parametrize("features", ["paper", "relu"])
def test_the_answer_of_the_linear_memory(features: str) -> None:
    """Head by head, with the kernel written as sums over absorbed entries."""
    layer, stream = stack(encoding="none"), tokens(100)
    gained, plain = (layer.feed(layer.memory(composed(gain=g, features=features)), stream)[0] for g in (0.5, 0.0))
    now, last = len(stream) - 1, (len(stream) - 1) // UNIT * UNIT - WINDOW
    gone = stream[SINKS:last]
    for head in range(layer.heads):
        kv = head // (layer.heads // layer.kv_heads)
        q = layer.queries[0, stream[now], head].double()
        keys, values = ([t[0, i, kv].double() for i in gone] for t in (layer.keys, layer.values))
        side = (lambda x: x) if features == "paper" else torch.relu
        above = sum(side(q) @ side(k) * v for k, v in zip(keys, values)) / len(gone)
        below = sum(q.relu() @ k.relu() for k in keys) / len(gone) + 1e-6
        assert difference(gained[now, head] - plain[now, head], 0.5 * above / below) < 1e-5


def test_positive_features_add_a_mean_of_values() -> None:
    """If all values are alike, what is added is that value times the gain."""
    layer, stream = stack(), tokens(80)
    layer.values[:] = torch.arange(1.0, 9.0)
    got = layer.feed(layer.memory(composed(gain=0.25, features="relu")), stream, 7)[0]
    assert difference(got[-1], 1.25 * torch.arange(1.0, 9.0).expand_as(got[-1])) < 1e-4


def test_a_query_reads_the_blocks_that_score_highest() -> None:
    layer, stream = stack(encoding="none"), tokens(64)
    got = layer.feed(layer.memory(composed(ratio=0.5)), stream)[0, -1]
    last = (len(stream) - 1) // UNIT * UNIT
    ids = torch.tensor(stream)
    for head in range(layer.heads):
        kv = head // (layer.heads // layer.kv_heads)
        query = layer.queries[0, ids[-1], head].double()
        key, value = (t[0, ids, kv].double() for t in (layer.keys, layer.values))
        blocks = torch.arange(last - WINDOW, last).view(-1, UNIT)
        means = torch.stack([key[b].mean(0) for b in blocks]) - key[blocks.flatten()].mean(0)
        best = (means @ query).topk(3).indices
        read = torch.cat([torch.arange(SINKS), blocks[best].flatten(), torch.arange(last, len(stream))])
        weights = (key[read] @ query * layer.scale).softmax(0)
        assert difference(got[head], weights @ value[read]) < 1e-5


def test_the_state_does_not_grow() -> None:
    layer = stack()
    memory, sizes = layer.memory(composed()), []
    for _ in range(3):
        layer.feed(memory, tokens(200), 64)
        sizes.append(sum(t.numel() for t in absorbed(memory).values() if isinstance(t, Tensor)))
    assert sizes == [2 * 8 * 8 + 2 * 8 + 1] * 3
