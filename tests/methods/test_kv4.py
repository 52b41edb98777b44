"""kv4 against the checks of its cards: what is stored, how far a score may be off, writing by tokens or by chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from penstock.errors import BudgetError, UnknownName
from penstock.memory import Memory, Sinks
from penstock.memory.codec import Int4
from penstock.memory.coded import Coded
from penstock.methods import parse
from penstock.methods.kv4 import KV4
from penstock.models.probe import attach
from penstock.testing import tiny_model, tiny_tokens

from .running import Running, difference

BUDGET = 64


@pytest.fixture(scope="module")
def llama() -> Running:
    return Running.of("llama")


@pytest.fixture(scope="module")
def precise() -> Running:
    """In float64: the noise of its kernels moves no number over a border of two codes."""
    return of_dtype("llama", torch.float64)


def of_dtype(family: str, dtype: torch.dtype, **settings: object) -> Running:
    """A tiny model in another precision."""
    return Running(attach(tiny_model(family, seed=5, **settings).to(dtype)))


def test_composition() -> None:
    """1,024 entries: 4 sinks, 44 fresh ones at most, a unit of 16, and 20 coded groups of 48."""
    cascade = KV4().cascade(1024)
    coded = Coded(Int4("channel", 48), Int4("token", 32), group=48, groups=20, fresh=44)
    assert cascade.segments == (Sinks(4), coded)
    assert (cascade.unit, cascade.entries, cascade.positions) == (16, 1024, "clamped")
    assert 4 + coded.fresh + cascade.unit == 64
    plain = KV4(coded=False).cascade(1024).segments[1]
    assert plain == Coded(None, None, group=48, groups=20, fresh=44), "the same window without codes"
    with pytest.raises(BudgetError, match="raise the budget"):
        KV4().cascade(12)
    with pytest.raises(BudgetError, match="0 or more"):
        parse("kv4:sinks=-1").cascade(100)
    with pytest.raises(UnknownName):
        parse("kv4:bits=3")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bytes_against_16_bits(dtype: torch.dtype) -> None:
    """At 1,024 entries of width 32: at most 0.35 of two bytes per number, tails, sinks, scales and indices included."""
    running = of_dtype("llama", dtype, head_dim=32)
    memory = running.memory("kv4", 1024)
    plain = sum(1024 * layer.entry_bytes(dtype) for layer in running.attached.geometry.layers)
    assert memory.budget_bytes is not None
    most = 0
    for count in (1000, *[16] * 12):
        running.feed(memory, tiny_tokens(count, count), 64)
        most = max(most, memory.nbytes)
    assert memory.nbytes <= memory.budget_bytes <= 0.35 * plain
    assert most >= 0.95 * memory.budget_bytes, "the formula is what is stored when the window is full"


def test_a_stream_written_token_by_token_equals_one_written_in_chunks(precise: Running) -> None:
    tokens = tiny_tokens(331, 1)
    whole = precise.feed(precise.memory("kv4", BUDGET), tokens)
    for chunk in (1, 7, 64):
        assert difference(precise.feed(precise.memory("kv4", BUDGET), tokens, chunk), whole) < 1e-12


def test_codes_are_those_of_fixed_groups() -> None:
    """Group k holds tokens [sinks + k * group, ...) whatever was fed together, coded from raw keys as one piece."""
    single = Running.of("llama", num_hidden_layers=1)  # keys of one layer depend on their tokens alone
    tokens = tiny_tokens(180, 2)
    memory, dense = single.memory("kv4", BUDGET), single.memory("kv4:coded=false", 4 * len(tokens))
    single.feed(memory, tokens, 13)
    single.feed(dense, tokens, 64)
    part = memory.cascades[0].segments[1]  # type: ignore[union-attr]
    assert isinstance(part, Coded)
    coded, plain = (m.groups[0].lanes[0][0][0].states[1] for m in (memory, dense))
    end = len(tokens) - len(memory.groups[0].lanes[0][0][0].tail.at)
    oldest = end - coded["key"].shape[1] - len(coded["keys"]) * part.group
    raw = torch.cat((plain["keys"].decode(torch.float32), plain["key"]), 1)[:, oldest - 4 :]
    assert (oldest - 4) % part.group == 0
    for k, piece in enumerate(coded["keys"].pieces):
        expected = part.keys.encode(raw[:, k * part.group : (k + 1) * part.group])  # type: ignore[union-attr]
        assert all(torch.equal(piece[name], expected[name]) for name in expected)


def test_scores_are_off_by_no_more_than_the_bound() -> None:
    """A score moves by at most |q| times the error of the key: the sum over channels of |q[c]| * bound[c]."""
    generator = torch.Generator().manual_seed(0)
    key, query = torch.randn(2, 48, 16, generator=generator), torch.randn(2, 9, 16, generator=generator)
    codec = Int4("channel", 48)
    coded = codec.encode(key)
    moved = query @ (codec.decode(coded, torch.float32) - key).transpose(-1, -2)
    most = query.abs() @ codec.bound(coded).expand(key.shape).transpose(-1, -2)
    assert (moved.abs() <= most + 1e-6).all()
    assert moved.abs().max() > 0.05 * most.max()


def test_nothing_is_lost_while_nothing_is_coded(llama: Running) -> None:
    """Up to the first coding the logits are those of the model's own attention; from then on they are not."""
    memory = llama.memory("kv4", BUDGET)
    part = memory.cascades[0].segments[1]  # type: ignore[union-attr]
    assert isinstance(part, Coded)
    tokens = tiny_tokens(120, 3)
    got = llama.feed(memory, tokens[:60], 7)
    expected = llama.native(tokens[:60])
    fresh = 4 + part.fresh + memory.cascades[0].unit  # type: ignore[union-attr]
    assert difference(got[:fresh], expected[:fresh]) < 1e-5
    assert difference(got[fresh + 4 :], expected[fresh + 4 :]) > 1e-4


def test_codes_cost_little_beside_the_same_window_without(llama: Running) -> None:
    """8 bits are far nearer to the window without codes than 4 bits, and 4 far nearer than another window."""
    tokens = tiny_tokens(300, 4)

    def logits(method: str, budget: int = 160) -> Tensor:
        memory: Memory = llama.memory(method, budget)
        return llama.feed(memory, tokens, 64)[100:].log_softmax(-1)

    plain = logits("kv4:coded=false")
    four, eight, shorter = (
        float((x - plain).pow(2).mean().sqrt()) for x in (logits("kv4"), logits("kv8"), logits("streaming-llm", 100))
    )
    assert eight < 0.15 * four
    assert four < 0.5 * shorter
