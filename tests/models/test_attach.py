"""The seam: what a model is like while it is attached, after it, and when two of us share it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penstock.core import Span
from penstock.errors import UnsupportedModel
from penstock.memory import Memory
from penstock.methods import parse
from penstock.models.attach import IMPLEMENTATION, Attached, attention
from penstock.models.probe import attach
from penstock.testing import tiny_model, tiny_tokens

TOKENS = tiny_tokens(40)


@torch.no_grad()
def own_logits(hf: Any) -> Tensor:
    return hf(input_ids=TOKENS[None], use_cache=False).logits


def memory_of(model: Attached, method: str = "streaming-llm", budget: int = 12) -> Memory:
    return Memory(model.geometry, parse(method).cascades(model.geometry, budget))


@torch.no_grad()
def read(model: Attached, memory: Memory, tokens: Tensor) -> Tensor:
    with memory.step([Span(0, len(tokens))]) as step:
        logits = model.run(tokens, step, logits="all")
    assert logits is not None
    return logits


def traces(hf: nn.Module) -> list[str]:
    """What we left on a model."""
    found = [name for name in hf.__dict__ if "penstock" in name]
    return found + [name for name, module in hf.named_modules() if "forward" in module.__dict__]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "gpt2", "qwen3_vl", "falcon", "falcon-alibi", "mpt"])
def test_detach_gives_the_model_back(family: str) -> None:
    """Bit for bit: not only the same function, the same code runs again."""
    hf: Any = tiny_model(family)
    before = own_logits(hf)
    used = hf.config._attn_implementation
    model = attach(hf)
    read(model, memory_of(model, "dense" if family == "gpt2" else "streaming-llm"), TOKENS)
    model.detach()
    assert hf.config._attn_implementation == used
    assert torch.equal(own_logits(hf), before)
    assert not traces(hf)
    model.detach()  # a second time is nothing


def test_parts_with_different_attention_get_their_own_back() -> None:
    hf: Any = tiny_model("qwen2_5_vl")
    hf.set_attn_implementation({"": "sdpa", "text_config": "eager", "vision_config": "sdpa"})
    model = attach(hf)
    assert hf.config.text_config._attn_implementation == IMPLEMENTATION
    model.detach()
    parts = (hf.config, hf.config.text_config, hf.config.vision_config)
    assert [part._attn_implementation for part in parts] == ["sdpa", "eager", "sdpa"]


def test_a_model_loaded_with_our_attention() -> None:
    """`from_pretrained(..., attn_implementation="penstock")`: checked against the library's, and left as it was."""
    hf: Any = tiny_model("gpt_oss")
    hf.set_attn_implementation(IMPLEMENTATION)
    model = attach(hf)
    read(model, memory_of(model), TOKENS)
    model.detach()
    assert hf.config._attn_implementation == IMPLEMENTATION


@pytest.mark.parametrize("family", ["llama", "gemma3", "falcon-alibi"])
def test_two_sessions_on_one_model(family: str) -> None:
    """Steps of two memories take turns; the first to leave takes nothing from the second."""
    hf: Any = tiny_model(family)
    before = own_logits(hf)
    other = tiny_tokens(40, seed=1)
    alone = [read(m := attach(tiny_model(family)), memory_of(m), tokens) for tokens in (TOKENS, other)]
    first, second = attach(hf), attach(hf)
    memories = memory_of(first), memory_of(second)
    parts: list[list[Tensor]] = [[], []]
    for start in range(0, 40, 10):
        for index, (model, tokens) in enumerate(((first, TOKENS), (second, other))):
            parts[index].append(read(model, memories[index], tokens[start : start + 10]))
            if start == 30:
                model.detach()
    for index in range(2):
        torch.testing.assert_close(torch.cat(parts[index]), alone[index], rtol=0, atol=1e-5)
    assert torch.equal(own_logits(hf), before)
    assert not traces(hf)


def test_the_model_is_itself_inside_native() -> None:
    for family in ("llama", "falcon"):
        hf: Any = tiny_model(family)
        before = own_logits(hf)
        model = attach(hf)
        with model.native():
            assert torch.equal(own_logits(hf), before)
        read(model, memory_of(model), TOKENS)


def test_an_attached_model_without_a_memory_is_refused() -> None:
    """It gets no mask, so it would silently read padding, and layers with windows would read everything."""
    hf: Any = tiny_model("mistral")
    attach(hf)
    with pytest.raises(UnsupportedModel, match=r"called without a memory.*set_attn_implementation\('sdpa'\)"):
        own_logits(hf)
    with pytest.raises(UnsupportedModel, match="called without a memory"):
        hf.generate(TOKENS[None], max_new_tokens=2)


def test_parts_without_memory_keep_plain_attention() -> None:
    """A vision tower of an attached model: both directions, grouped heads, its own mask."""
    query, key, value = torch.randn(3, 1, 4, 9, 8).unbind(0)
    module: Any = SimpleNamespace(is_causal=False)
    mask = torch.randn(1, 1, 9, 9)
    out, _ = attention(module, query, key[:, :2], value[:, :2], mask, scaling=0.3)
    scores = query @ key[:, :2].repeat_interleave(2, 1).transpose(-1, -2) * 0.3 + mask
    expected = scores.softmax(-1) @ value[:, :2].repeat_interleave(2, 1)
    torch.testing.assert_close(out, expected.transpose(1, 2))


def test_another_attention_set_meanwhile_is_noticed() -> None:
    """Any other implementation would ignore the memory and answer from the step's own tokens."""
    hf: Any = tiny_model("llama")
    model = attach(hf)
    hf.set_attn_implementation("sdpa")
    with pytest.raises(UnsupportedModel, match="given another attention after it was attached"):
        read(model, memory_of(model), TOKENS)


def test_which_logits() -> None:
    model = attach(tiny_model("llama"))
    every = read(model, memory_of(model), TOKENS)
    assert every.shape == (40, 128)
    with torch.no_grad():
        memory = memory_of(model)
        with memory.step([Span(0, 40)]) as step:
            last = model.run(TOKENS, step)
        with memory.step([Span(0, 40)]) as step:
            assert model.run(TOKENS, step, logits="none") is None
    assert last is not None
    torch.testing.assert_close(last, every[-1:], rtol=0, atol=1e-6)
