"""Falcon and MPT: replaced forwards come and go, and their biases are what the papers say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.core import Span
from penstock.memory import Alibi, Memory, Rotary
from penstock.methods import parse
from penstock.models.adapters import adapter_for, has_adapter
from penstock.models.attach import Recorder
from penstock.models.probe import attach, compare_with_native
from penstock.testing import tiny_model, tiny_tokens

FAMILIES = ("falcon", "falcon-new", "falcon-alibi", "mpt")


def replaced(hf: Any) -> list[str]:
    return [name for name, module in hf.named_modules() if "forward" in module.__dict__]


@torch.no_grad()
def logits_of(hf: Any) -> Tensor:
    return hf(input_ids=tiny_tokens(30)[None], use_cache=False).logits


def test_only_these_families_have_one() -> None:
    assert [family for family in (*FAMILIES, "llama", "gpt2") if has_adapter(tiny_model(family))] == list(FAMILIES)
    assert adapter_for(tiny_model("llama")) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_replacements_come_and_go(family: str) -> None:
    hf = tiny_model(family)
    before = logits_of(hf)
    first, second = adapter_for(hf), adapter_for(hf)
    assert len(replaced(hf)) == 3, "one for each attention layer, and nothing else"
    assert torch.equal(logits_of(hf), before), "without a step the model is itself"
    first.remove()
    first.remove()
    assert len(replaced(hf)) == 3
    second.remove()
    assert not replaced(hf)
    assert torch.equal(logits_of(hf), before)


def test_a_forward_that_was_replaced_before_us_comes_back() -> None:
    """Device placement tools replace forwards of instances too."""
    hf: Any = tiny_model("mpt")
    layer = hf.transformer.blocks[0].attn
    own = layer.forward
    layer.forward = lambda *args, **kwargs: own(*args, **kwargs)
    theirs = layer.forward
    adapter = adapter_for(hf)
    assert layer.forward is not theirs
    adapter.remove()
    assert layer.forward is theirs


def test_uses_nest_and_end_with_their_block() -> None:
    hf: Any = tiny_model("falcon")
    adapter = adapter_for(hf)
    outer, inner = Recorder(), Recorder()
    with adapter.use(outer):
        with pytest.raises(ZeroDivisionError), adapter.use(inner):
            raise ZeroDivisionError
        assert adapter.seat.step is outer
        with adapter.suspended():
            assert adapter.seat.step is None
        logits_of(hf)
    assert adapter.seat.step is None
    assert sorted(outer.seen) == [0, 1, 2]
    assert not inner.seen


@pytest.mark.parametrize(("family", "stored"), [("falcon", 1), ("falcon-new", 2), ("falcon-alibi", 4), ("mpt", 6)])
def test_only_real_heads_are_stored(family: str, stored: int) -> None:
    """The library repeats Falcon's key-value heads before it stores them."""
    model = attach(tiny_model(family))
    memory = Memory(model.geometry, parse("window").cascades(model.geometry, 10))
    width = model.geometry.layers[0].key_width
    assert memory.nbytes == 3 * 2 * stored * 10 * width * 4


def test_rotary_falcon_gives_raw_keys() -> None:
    encodings = [layer.encoding for layer in attach(tiny_model("falcon")).geometry.layers]
    assert all(isinstance(e, Rotary) for e in encodings)
    scaled = tiny_model("falcon", rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})
    slower, plain = attach(scaled).geometry.layers[0].encoding, encodings[0]
    assert isinstance(slower, Rotary)
    assert isinstance(plain, Rotary)
    torch.testing.assert_close(slower.inv_freq * 4, plain.inv_freq)


def paper_slopes(heads: int) -> Tensor:
    """The sequence of arXiv:2108.12409, its appendix A included for numbers that are no powers of two."""

    def power_of_two(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    closest = 2 ** int(math.log2(heads))
    rest = power_of_two(2 * closest)[0::2][: heads - closest]
    return torch.tensor(power_of_two(closest) + rest)


@pytest.mark.parametrize("heads", [4, 6, 8])
def test_falcon_slopes(heads: int) -> None:
    hf = tiny_model("falcon-alibi", hidden_size=16 * heads, num_attention_heads=heads)
    code = attach(hf).geometry.layers[0].encoding
    assert isinstance(code, Alibi)
    torch.testing.assert_close(code.slopes * math.sqrt(16), paper_slopes(heads), rtol=2**-8, atol=0)


@pytest.mark.parametrize("heads", [2, 4, 6, 8])
def test_mpt_slopes(heads: int) -> None:
    """MPT takes the slopes of the next power of two: the odd ones first, then the even ones, until there are enough."""
    geometry = attach(tiny_model("mpt", d_model=16 * heads, n_heads=heads)).geometry
    code = geometry.layers[0].encoding
    assert isinstance(code, Alibi)
    full = 2 ** math.ceil(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / full) for i in range(full)]
    expected = slopes if full == heads else (slopes[1::2] + slopes[0::2])[:heads]
    torch.testing.assert_close(code.slopes, torch.tensor(expected))
    assert all(layer.encoding is code for layer in geometry.layers), "layers with one bias share one plan"


def test_eager_falcon_is_compared_with_the_path_that_counts_its_bias_once() -> None:
    """Eager attention of the library adds the ALiBi bias to the scores and again with the mask."""
    hf: Any = tiny_model("falcon-alibi")
    once = logits_of(hf)
    hf.config._attn_implementation = "eager"
    model = attach(hf)
    difference, _ = compare_with_native(model)
    assert difference < 1e-4
    assert hf.config._attn_implementation == "eager"
    with torch.no_grad(), model.native():
        torch.testing.assert_close(logits_of(hf), once)


def test_settings_of_mpt_count() -> None:
    """Clipping and the softmax scale reach the memory: without them the self-check would fail."""
    base = {"clip_qkv": None, "softmax_scale": None, "alibi": True, "alibi_bias_max": 8}
    outs = []
    for change in ({}, {"clip_qkv": 0.5}, {"softmax_scale": 0.9}):
        model = attach(tiny_model("mpt", attn_config={**base, **change}))
        memory = Memory(model.geometry, parse("streaming-llm").cascades(model.geometry, 12))
        with torch.no_grad(), memory.step([Span(0, 30)]) as step:
            outs.append(model.run(tiny_tokens(30), step, logits="all"))
    assert float((outs[0] - outs[1]).abs().max()) > 0.1
    assert float((outs[0] - outs[2]).abs().max()) > 0.1
