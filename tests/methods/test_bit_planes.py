"""bit-planes: any number of bits, read whole or in part.

The number format and its products are in tests/memory/test_codec_bit_planes.py.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from penstock.errors import CompositionError
from penstock.memory import Sinks
from penstock.memory.codec import BitPlanes as Planes
from penstock.memory.coded import Coded
from penstock.methods import parse
from penstock.methods.bit_planes import BitPlanes
from penstock.testing import tiny_tokens

from .running import Running


@pytest.fixture(scope="module")
def llama() -> Running:
    return Running.of("llama")


def test_composition() -> None:
    cascade = BitPlanes(planes=5, read=3).cascade(1024)
    keys, values = Planes("channel", 48, count=5, read=3), Planes("token", 32, count=5, read=3)
    assert cascade.segments == (Sinks(4), Coded(keys, values, group=48, groups=20, fresh=44))
    assert BitPlanes().lossless() == BitPlanes(coded=False)
    for bad, message in [("planes=9", "1 to 8"), ("planes=0", "1 to 8"), ("read=5", "ask for 1 to 4")]:
        with pytest.raises(CompositionError, match=message):
            parse(f"bit-planes:{bad}").cascade(1024)


def test_every_plane_costs_one_bit(llama: Running) -> None:
    sizes = [llama.memory(f"bit-planes:planes={n}", 1024).budget_bytes for n in range(1, 9)]
    plane = sum(
        960 * layer.kv_heads * (layer.key_width + layer.value_width) // 8 for layer in llama.attached.geometry.layers
    )
    assert [b - a for a, b in itertools.pairwise(sizes)] == [plane] * 7  # type: ignore[operator]
    assert llama.memory("bit-planes", 1024).budget_bytes == llama.memory("kv4", 1024).budget_bytes


def test_each_plane_read_brings_the_logits_nearer(llama: Running) -> None:
    """Stored in 8, read in 1 to 8; and 4 planes of 8 are about as good as 4 of 4."""
    tokens = tiny_tokens(300, 4)
    plain = llama.feed(llama.memory("bit-planes:coded=false", 160), tokens, 64)

    def off(options: str) -> float:
        got = llama.feed(llama.memory(f"bit-planes:{options}", 160), tokens, 64)
        return float((got - plain).pow(2).mean().sqrt())

    errors = [off(f"planes=8,read={read}") for read in (2, 4, 6, 8)]
    assert all(b < 0.5 * a for a, b in itertools.pairwise(errors))
    assert 0.5 < errors[1] / off("planes=4") < 2
    assert torch.isfinite(torch.tensor(errors)).all()
