"""k-sort against its card: sorting changes no score, and helps where there are outlier channels.

The format and its bound are in tests/memory/test_codec_block_float.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from penstock.errors import CompositionError
from penstock.memory import Memory, Sinks
from penstock.memory.codec import BlockFloat, channel_order
from penstock.memory.coded import Coded
from penstock.methods import parse
from penstock.methods.k_sort import KSort
from penstock.models.probe import attach
from penstock.testing import tiny_model, tiny_tokens

from .running import Running, difference

WIDTH, OUTLIERS = 32, (1, 9, 17, 25)  # a large channel in each block of 8


def with_outliers() -> Running:
    """A tiny model whose keys have four large channels per head; queries shrink by as much, so that scores stay."""
    model = tiny_model("llama", seed=5, head_dim=WIDTH, num_hidden_layers=1)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        for projection, factor in ((attention.k_proj, 20.0), (attention.q_proj, 1 / 20)):
            rows = projection.weight.view(-1, WIDTH, projection.weight.shape[1])
            for channel in OUTLIERS:  # with its partner of the rotation, channel +- 16
                rows[:, channel] *= factor
    return Running(attach(model))


def coded_part(memory: Memory) -> Coded:
    part = memory.cascades[0].segments[1]  # type: ignore[union-attr]
    assert isinstance(part, Coded)
    return part


def test_composition() -> None:
    running = Running.of("llama", head_dim=WIDTH)
    for options, block in [("", 16), (":block=8", 8), (":block=64", 16)]:  # at most half a head
        memory = running.memory(f"k-sort{options}", 1024)
        assert coded_part(memory) == Coded(BlockFloat(4, block, True), BlockFloat(4, block), 48, 20, 44)
        assert memory.cascades[0].segments[0] == Sinks(4)  # type: ignore[union-attr]
    assert coded_part(running.memory("k-sort:sort=false,bits=8", 1024)).keys == BlockFloat(8, 16, False)
    for bad in ("k-sort:bits=5", "k-sort:bits=12"):
        with pytest.raises(CompositionError, match="4 or 8 bits"):
            parse(bad).cascade(1024)
    assert KSort().lossless() == KSort(coded=False)


def test_a_sorted_without_rounding_is_the_original() -> None:
    """8-bit mantissas of numbers that need fewer: sorted or not, the same logits, to the last bits."""
    running, tokens = Running.of("llama", head_dim=WIDTH), tiny_tokens(200, 1)
    a, b = (running.feed(running.memory(f"k-sort:block=1,bits=8,sort={s}", 96), tokens, 64) for s in ("true", "false"))
    assert difference(a, b) < 1e-5, "blocks of one channel are the same blocks in any order"


def test_b_error_of_a_stored_key_is_half_its_step() -> None:
    running, tokens = with_outliers(), tiny_tokens(150, 2)
    memory, plain = running.memory("k-sort", 96), running.memory("k-sort:coded=false", 96)
    running.feed(memory, tokens, 64)
    running.feed(plain, tokens, 64)
    part = coded_part(memory)
    keys, raw = (m.groups[0].lanes[0][0][0].states[1]["keys"] for m in (memory, plain))
    assert len(keys) == len(raw) > 0
    for piece, original in zip(keys.pieces, raw.pieces):
        error = (part.keys.decode(piece, torch.float32) - original["numbers"]).abs()  # type: ignore[union-attr]
        assert (error <= part.keys.bound(piece)).all()  # type: ignore[union-attr]


def test_c_sorting_helps_where_there_are_outliers() -> None:
    """Stored keys and logits are nearer to those without codes when large channels share blocks."""
    running, tokens = with_outliers(), tiny_tokens(260, 3)
    plain = running.feed(running.memory("k-sort:coded=false", 160), tokens, 64)

    def off(sort: str) -> float:
        memory = running.memory(f"k-sort:block=8,sort={sort}", 160)
        return float((running.feed(memory, tokens, 64) - plain).pow(2).mean().sqrt())

    assert off("true") < 0.8 * off("false")


def test_the_order_of_the_first_keys_is_that_of_the_weights() -> None:
    """The card sorts by the rows of the key projection; the first group of keys finds the same large channels."""
    running, tokens = with_outliers(), tiny_tokens(150, 4)
    memory = running.memory("k-sort", 96)
    running.feed(memory, tokens, 64)
    order: Tensor = memory.groups[0].lanes[0][0][0].states[1]["keys"].pieces[0]["order"]
    weight = running.attached.hf.model.layers[0].self_attn.k_proj.weight.detach()
    by_rows = channel_order(weight.view(-1, WIDTH, weight.shape[1]).norm(dim=-1))
    for head in range(order.shape[0]):
        assert set(order[head, :4].tolist()) == set(by_rows[head, :4].tolist()) == set(OUTLIERS)
