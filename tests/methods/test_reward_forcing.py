"""reward-forcing against its card: checks (a) to (c), and a literal loop over one layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Memory, Sinks, Window
from penstock.methods.reward_forcing import MovingSinks, RewardForcing
from penstock.testing import tiny_tokens
from tests.memory.stack import Stack, difference, tokens

from .running import Running
from .running import difference as logits_difference

BUDGET, UNIT, SINKS, WINDOW = 24, 4, 6, 14


def stack(**settings: object) -> Stack:
    return Stack(windows=(None,), **settings)  # type: ignore[arg-type]


def folded(memory: Memory) -> tuple[Tensor, Tensor]:
    """Keys and values of the sinks in the first layer."""
    held = memory.groups[0].lanes[0][0][0].states[1]["held"]
    return held.key, held.value


def method(decay: float = 0.999, positions: str = "contiguous", sinks: int = SINKS) -> Cascade:
    return RewardForcing(sinks, decay, UNIT, positions).cascade(BUDGET)  # type: ignore[arg-type]


def test_composition() -> None:
    assert RewardForcing().cascade(96) == Cascade((Window(48), MovingSinks(32, 0.999)), "contiguous", 16)
    assert method() == Cascade((Window(WINDOW), MovingSinks(SINKS)), "contiguous", UNIT)
    with pytest.raises(BudgetError, match=r"a budget of 20 is too small for reward-forcing: give at least 21"):
        RewardForcing(sinks=16, unit=4).cascade(20)
    with pytest.raises(BudgetError, match="needs a budget"):
        RewardForcing().cascade(None)
    with pytest.raises(UsageError, match=r"decay cannot be 1.5"):
        RewardForcing(decay=1.5).cascade(96)
    with pytest.raises(UsageError, match="a unit of 5 tokens"):
        RewardForcing(unit=5).cascade(96)


@pytest.mark.parametrize("positions", ["contiguous", "clamped"])
def test_a_decay_one_is_plain_sinks(positions: str) -> None:
    layer, stream = stack(), tokens(90)
    memory = layer.memory(method(1.0, positions))
    got = layer.feed(memory, stream, 7)
    plain = layer.memory(Cascade((Sinks(SINKS), Window(WINDOW)), positions, UNIT))
    expected = layer.feed(plain, stream, 7)
    key, value = folded(memory)
    ids = torch.tensor(stream[:SINKS])
    kept = layer.keys[0, ids].transpose(0, 1)
    if positions == "contiguous":
        assert torch.equal(key, kept)
    assert difference(key, kept) < 1e-6  # clamped windows hold rotated keys: turned back, they are rounded once more
    assert torch.equal(value, layer.values[0, ids].transpose(0, 1))
    assert difference(got, expected) < 1e-6
    assert difference(layer.feed(layer.memory(method(0.9, positions)), stream, 7), expected) > 1e-3


@pytest.mark.parametrize("sinks", [1, 3, 6, 9])
def test_b_closed_form(sinks: int) -> None:
    """Sink s is the weighted sum of arrivals s, s + S, s + 2S, ..., whatever the block."""
    decay, stream = 0.9, tokens(120)
    layer = stack()
    memory = layer.memory(method(decay, sinks=sinks))
    layer.feed(memory, stream, 11)
    left = len(stream) - (BUDGET - UNIT - sinks)  # the window is full and no tail is left: 120 is whole units
    for got, table in zip(folded(memory), (layer.keys, layer.values)):
        for s in range(sinks):
            first, *others = (table[0, stream[j]].double() for j in range(s, left, sinks))
            n = len(others)
            expected = decay**n * first + (1 - decay) * sum(decay ** (n - j) * e for j, e in enumerate(others, 1))
            assert difference(got[:, s], expected) < 1e-5


def test_c_equals_dense_until_something_leaves() -> None:
    llama, stream = Running.of("llama"), tiny_tokens(SINKS + WINDOW)
    for positions in ("contiguous", "clamped"):
        name = f"reward-forcing:sinks={SINKS},unit={UNIT},positions={positions}"
        got = llama.feed(llama.memory(name, BUDGET), stream, 7)
        assert logits_difference(got, llama.native(stream)) < 1e-5


def literal(layer: Stack, stream: list[int], decay: float) -> Tensor:
    """[N, Hq, D] float64: the card's loop.  Buffer [sinks | window], keys unrotated, numbered from 0 at every read."""
    group, frequencies = layer.heads // layer.kv_heads, 10000.0 ** -(torch.arange(0, 8, 2).double() / 8)

    def rotate(x: Tensor, position: int) -> Tensor:
        a, b = x.chunk(2, -1)
        cos, sin = (position * frequencies).cos(), (position * frequencies).sin()
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    buffer: list[tuple[Tensor, Tensor]] = []
    outs, folds = [], 0
    for n, token in enumerate(stream):
        query, key, value = (t[0, token].double() for t in (layer.queries, layer.keys, layer.values))
        buffer.append((key, value))
        rotated = torch.stack([rotate(k, rank) for rank, (k, _) in enumerate(buffer)], 1).repeat_interleave(group, 0)
        values = torch.stack([v for _, v in buffer], 1).repeat_interleave(group, 0)
        scores = (rotated @ rotate(query, len(buffer) - 1)[..., None])[..., 0] * layer.scale
        outs.append((scores.softmax(-1)[..., None] * values).sum(1))
        if (n + 1) % UNIT == 0:  # a block ends: the oldest of the window make room
            while len(buffer) > SINKS + WINDOW:
                k, v = buffer.pop(SINKS)
                sink_k, sink_v = buffer[folds % SINKS]
                buffer[folds % SINKS] = (decay * sink_k + (1 - decay) * k, decay * sink_v + (1 - decay) * v)
                folds += 1
    return torch.stack(outs)


@pytest.mark.parametrize("chunk", [1, 7, None])
def test_equals_the_loop_of_the_card(chunk: int | None) -> None:
    layer, stream = stack(), tokens(101)
    got = layer.feed(layer.memory(method(0.8)), stream, chunk)[0]
    assert difference(got, literal(layer, stream, 0.8)) < 1e-5


def test_half_precision_does_not_stand_still() -> None:
    """A fold of 1/1000 is below the resolution of bfloat16, and a thousand of them must still arrive."""
    layer = stack(dtype=torch.bfloat16)
    memory = layer.memory(method())
    layer.feed(memory, [1] * (SINKS + UNIT * 3) + [2] * 6000, 64)
    key, _ = folded(memory)
    start, end = (layer.keys[0, i].float()[:, None] for i in (1, 2))
    share = 0.999 ** (6000 // SINKS - 4)
    assert difference(key, (share * start + (1 - share) * end).expand_as(key)) < 0.02
