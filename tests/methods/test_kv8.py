"""kv8: the window of kv4 in 8 bits."""

from __future__ import annotations

import pytest
import torch

from penstock.errors import BudgetError
from penstock.memory import Sinks
from penstock.memory.codec import Int8
from penstock.memory.coded import Coded
from penstock.methods import parse
from penstock.methods.kv4 import KV8
from penstock.testing import tiny_tokens

from .running import Running


def test_composition() -> None:
    cascade = KV8().cascade(1024)
    assert cascade.segments == (Sinks(4), Coded(Int8("channel", 48), Int8("token", 32), group=48, groups=20, fresh=44))
    assert (cascade.unit, cascade.entries) == (16, 1024)
    assert KV8().lossless() == KV8(coded=False)
    with pytest.raises(BudgetError, match="raise the budget"):
        parse("kv8:sinks=40").cascade(64)


def test_bytes_against_16_bits() -> None:
    """A little over half, tails, sinks, scales and indices included."""
    geometry = Running.of("llama", head_dim=32).attached.geometry
    [layer, *_] = geometry.layers
    memory = Running.of("llama", head_dim=32).memory("kv8", 4096)
    assert memory.budget_bytes is not None
    coded = 4032 * layer.kv_heads * (32 + 32 + 32 * 4 / 48 + 4)  # codes, scales and zeros of keys, of values
    full = memory.budget_bytes / len(geometry.layers) - coded
    assert 0 < full < 70 * layer.entry_bytes(torch.float32)
    assert coded / (4032 * layer.entry_bytes(torch.float16)) == pytest.approx(0.5521, abs=1e-4)


def test_eight_bits_lose_next_to_nothing() -> None:
    """Logits are off by less than a fiftieth of what a shorter window moves them by."""
    llama, tokens = Running.of("llama"), tiny_tokens(300, 4)
    plain, coded, shorter = (
        llama.feed(llama.memory(method, budget), tokens, 64)[120:]
        for method, budget in [("kv8:coded=false", 160), ("kv8", 160), ("kv8:coded=false", 96)]
    )
    assert (coded - plain).abs().mean() < 0.02 * (shorter - plain).abs().mean()
    assert not torch.equal(coded, plain)
