"""The transformers Cache form: `generate` with a StreamCache equals our own loop, in every way that generate goes."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penstock.cache import StreamCache
from penstock.core import Span
from penstock.errors import CompositionError, ContextFull, MemoryStateError, NotRewindable, UnsupportedModel, UsageError
from penstock.memory import Memory
from penstock.methods import parse
from penstock.models.probe import attach
from penstock.testing import tiny_model, tiny_tokens

GREEDY: dict[str, Any] = {
    "max_new_tokens": 30,
    "do_sample": False,
    "eos_token_id": None,
    "pad_token_id": 0,
    "use_cache": True,
}
INTERFACE = ("llama", "mistral", "gemma3", "gpt_oss", "gpt_neox", "qwen3_vl")
ADAPTED = ("falcon", "falcon-alibi", "mpt")
FORMS = (("penstock", "streaming-llm"), ("sdpa", "window"), ("sdpa", "dense"))


def model_with(family: str, attention: str = "penstock") -> Any:
    """A tiny model with an attention implementation (eager where the family has no sdpa; adapters need none)."""
    model: Any = tiny_model(family)
    if family in ADAPTED:
        return model
    if attention == "sdpa" and not model._supports_sdpa:
        attention = "eager"
    model.set_attn_implementation(attention)
    return model


def prompt(count: int = 40, rows: int = 1, seed: int = 0) -> Tensor:
    return torch.stack([tiny_tokens(count, seed=seed + row) for row in range(rows)])


@torch.no_grad()
def stepped(family: str, tokens: Tensor, method: str, budget: int, chunk: int = 16) -> Tensor:
    """[T, V] logits of one row by stepping a memory, without any cache."""
    attached = attach(tiny_model(family))
    memory = Memory(attached.geometry, parse(method).cascades(attached.geometry, budget))
    out = []
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        with memory.step([Span(0, len(part))]) as step:
            logits = attached.run(part, step, logits="all")
        assert logits is not None
        out.append(logits)
    return torch.cat(out)


def assert_close(a: Tensor, b: Tensor) -> None:
    difference, size = float((a - b).abs().max()), max(1.0, float(b.abs().max()))
    assert difference <= 1e-5 * size, f"logits of up to {size:.3g} differ by {difference:.3g}"


# -- large budgets: the model's own answer ------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["dense", "window", "streaming-llm"])
@pytest.mark.parametrize("family", INTERFACE + ADAPTED)
def test_generate_equals_the_library(family: str, memory: str) -> None:
    expected = tiny_model(family).generate(prompt(), **GREEDY)
    model = model_with(family)
    cache = StreamCache(model, memory, budget=200)
    assert torch.equal(model.generate(prompt(), past_key_values=cache, **GREEDY), expected)
    assert cache.get_seq_length() == expected.shape[1] - 1, "the newest token was never read"


@pytest.mark.parametrize("memory", ["dense", "window"])
@pytest.mark.parametrize("family", INTERFACE)
def test_generate_with_the_models_own_attention(family: str, memory: str) -> None:
    expected = tiny_model(family).generate(prompt(), **GREEDY)
    model = model_with(family, "sdpa")
    assert torch.equal(model.generate(prompt(), past_key_values=StreamCache(model, memory, 200), **GREEDY), expected)


def test_learned_positions_take_dense_only() -> None:
    expected = tiny_model("gpt2").generate(prompt(), **GREEDY)
    for attention in ("penstock", "sdpa"):
        model = model_with("gpt2", attention)
        out = model.generate(prompt(), past_key_values=StreamCache(model, "dense"), **GREEDY)
        assert torch.equal(out, expected)
        with pytest.raises(UnsupportedModel, match="learned positions"):
            StreamCache(model, "window", 20)


# -- small budgets: our own loop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["streaming-llm", "window"])
@pytest.mark.parametrize("family", INTERFACE + ADAPTED)
def test_generate_equals_stepping_the_memory(family: str, memory: str) -> None:
    model = model_with(family)
    cache = StreamCache(model, memory, budget=12)
    out = model.generate(prompt(), past_key_values=cache, output_logits=True, return_dict_in_generate=True, **GREEDY)
    assert out.past_key_values is cache
    logits = torch.cat(out.logits)  # [new, V]
    expected = stepped(family, out.sequences[0, :-1], memory, 12)[39:]
    assert_close(logits, expected)
    assert torch.equal(out.sequences[0, 40:], expected.argmax(-1))


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("budget", [1, 12, 40])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_oss", "qwen2"])
@torch.no_grad()
def test_plain_windows_do_not_depend_on_chunks(family: str, budget: int, chunk: int) -> None:
    """A query reads `budget` keys although its chunk brings more: the masks say so."""
    tokens = prompt(64)
    model = model_with(family, "sdpa")
    cache = StreamCache(model, "window", budget)
    parts = [model(tokens[:, i : i + chunk], past_key_values=cache, use_cache=True).logits for i in range(0, 64, chunk)]
    assert_close(torch.cat(parts, dim=1)[0], stepped(family, tokens[0], "window", budget))
    assert all(layer.keys.shape[2] <= budget - 1 for layer in cache.layers), "more was kept than is ever read"


@torch.no_grad()
def test_long_prompts_are_cut() -> None:
    """700 tokens at once through a memory of 24: the same as in chunks, and nothing of size 700 squared."""
    tokens = prompt(700)
    model = model_with("llama")
    cache = StreamCache(model, "streaming-llm", 24)
    logits = model(tokens, past_key_values=cache).logits[0]
    assert_close(logits, stepped("llama", tokens[0], "streaming-llm", 24, chunk=64))
    assert cache.get_seq_length() == 700


def test_chunked_prefill() -> None:
    model = model_with("gemma3")
    whole = model.generate(prompt(), past_key_values=StreamCache(model, "streaming-llm", 12), **GREEDY)
    cut = model.generate(
        prompt(), past_key_values=StreamCache(model, "streaming-llm", 12), prefill_chunk_size=7, **GREEDY
    )
    assert torch.equal(whole, cut)


# -- batches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "attention", "memory"),
    [
        ("llama", "penstock", "streaming-llm"),
        ("gemma3", "penstock", "streaming-llm"),
        ("falcon-alibi", "penstock", "streaming-llm"),
        ("llama", "sdpa", "window"),
        ("gemma3", "eager", "window"),
        ("llama", "eager", "dense"),
    ],
)
def test_padded_rows_answer_as_alone(family: str, attention: str, memory: str) -> None:
    model = model_with(family, attention)
    long, short = prompt(40, seed=1), prompt(23, seed=2)
    alone = [
        model.generate(ids, past_key_values=StreamCache(model, memory, 12), **GREEDY)[0, ids.shape[1] :]
        for ids in (long, short)
    ]
    padded = torch.cat((long, nn.functional.pad(short, (17, 0))))
    mask = torch.ones_like(padded)
    mask[1, :17] = 0
    out = model.generate(padded, attention_mask=mask, past_key_values=StreamCache(model, memory, 12), **GREEDY)
    assert torch.equal(out[0, 40:], alone[0])
    assert torch.equal(out[1, 40:], alone[1])


@torch.no_grad()
def test_padding_may_lie_anywhere() -> None:
    model = model_with("llama")
    tokens = tiny_tokens(20)
    expected = model(tokens[None], past_key_values=StreamCache(model, "streaming-llm", 12)).logits[0]
    mask = torch.ones(1, 26, dtype=torch.long)
    mask[0, [0, 5, 6, 11, 24, 25]] = 0
    spread = torch.zeros(1, 26, dtype=torch.long)
    spread[mask.bool()] = tokens
    cache = StreamCache(model, "streaming-llm", 12)
    logits = model(spread, attention_mask=mask, past_key_values=cache).logits[0]
    assert_close(logits[mask[0].bool()], expected)


def test_beams() -> None:
    search = {**GREEDY, "num_beams": 3}
    expected = tiny_model("llama").generate(prompt(rows=2), **search)
    for attention, memory in (("penstock", "dense"), ("penstock", "streaming-llm"), ("sdpa", "window")):
        model = model_with("llama", attention)
        out = model.generate(prompt(rows=2), past_key_values=StreamCache(model, memory, 200), **search)
        assert torch.equal(out, expected)


def test_rows_are_selected_and_repeated() -> None:
    model = model_with("llama")
    cache = StreamCache(model, "streaming-llm", 12)
    with torch.no_grad():
        model(prompt(30, rows=2), past_key_values=cache)
        cache.batch_repeat_interleave(2)
        assert cache.batch_size == 4
        cache.batch_select_indices(torch.tensor([3, 0]))
        swapped = model(prompt(1, rows=1).expand(2, 1), past_key_values=cache).logits
        other = StreamCache(model, "streaming-llm", 12)
        model(prompt(30, rows=2), past_key_values=other)
        straight = model(prompt(1, rows=1).expand(2, 1), past_key_values=other).logits
    assert_close(swapped, straight[[1, 0]])


# -- more than one call -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attention", "memory"), [("penstock", "streaming-llm"), ("sdpa", "window"), ("sdpa", "dense")]
)
def test_a_second_call_continues(attention: str, memory: str) -> None:
    model = model_with("llama", attention)
    cache = StreamCache(model, memory, 12)
    first = model.generate(prompt(), past_key_values=cache, **GREEDY)
    longer = torch.cat((first, prompt(9, seed=5)), dim=1)
    second = model.generate(longer, past_key_values=cache, **GREEDY)
    at_once = model.generate(longer, past_key_values=StreamCache(model, memory, 12), **GREEDY)
    assert torch.equal(second, at_once)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(model.generate(prompt(), past_key_values=cache, **GREEDY), first)


@pytest.mark.parametrize(
    ("attention", "memory"), [("penstock", "streaming-llm"), ("sdpa", "window"), ("sdpa", "dense")]
)
def test_copies_go_their_own_way(attention: str, memory: str) -> None:
    """The library's recipe for a shared prefix: read it once, copy the cache for each question."""
    model = model_with("llama", attention)
    prefix = StreamCache(model, memory, 12)
    with torch.no_grad():
        model(prompt()[:, :-1], past_key_values=prefix)
    expected = model.generate(prompt(), past_key_values=StreamCache(model, memory, 12), **GREEDY)
    for _ in range(2):
        out = model.generate(prompt(), past_key_values=copy.deepcopy(prefix), **GREEDY)
        assert torch.equal(out, expected)
    assert prefix.get_seq_length() == 39


@torch.no_grad()
def test_crop_is_exact_or_refused() -> None:
    model = model_with("llama")
    cache = StreamCache(model, "streaming-llm", 12)
    model(prompt(30), past_key_values=cache)
    with pytest.raises(NotRewindable):
        cache.crop(-1)
    cache.activate_past_recording()
    model(prompt(5, seed=3), past_key_values=cache)
    cache.crop(-4)
    assert cache.get_seq_length() == 31
    again = model(prompt(5, seed=4), past_key_values=cache).logits
    straight = StreamCache(model, "streaming-llm", 12)
    tokens = torch.cat((prompt(30), prompt(5, seed=3)[:, :1], prompt(5, seed=4)), dim=1)
    assert_close(again, model(tokens, past_key_values=straight).logits[:, 31:])


@pytest.mark.parametrize("memory", ["dense", "streaming-llm"])
def test_speculation(memory: str) -> None:
    """Guesses taken from the prompt and rejected leave no trace, also when the memory is full and evicts.

    The prompt fits: `generate` reads it together with the first guesses, and what passes through a small memory within
    one call cannot be brought back.
    """
    model = model_with("llama")
    text = prompt(8).repeat(1, 3)
    expected = model.generate(text, past_key_values=StreamCache(model, memory, 32), **GREEDY)
    cache = StreamCache(model, memory, 32)
    out = model.generate(text, past_key_values=cache, prompt_lookup_num_tokens=3, **GREEDY)
    assert torch.equal(out, expected)


# -- what is refused ----------------------------------------------------------------------------------------------


def test_bounded_numbering_needs_our_attention() -> None:
    model = model_with("llama", "sdpa")
    with pytest.raises(CompositionError, match=r"set_attn_implementation\('penstock'\)"):
        StreamCache(model, "streaming-llm", 12)


@torch.no_grad()
def test_calls_that_would_be_wrong_are_refused() -> None:
    model = model_with("llama")
    cache = StreamCache(model, "streaming-llm", 12)
    with pytest.raises(UsageError, match="pass use_cache=True"):
        model(prompt(), past_key_values=cache, use_cache=False)
    with pytest.raises(UsageError, match="not a part of it"):
        model.model(prompt(), past_key_values=cache)
    with pytest.raises(UsageError, match=r"attention_mask \[B, T\]"):
        model(prompt(4), attention_mask=torch.zeros(1, 1, 4, 4), past_key_values=cache)
    with pytest.raises(UnsupportedModel, match="text only"):
        model(prompt(), pixel_values=torch.zeros(1), past_key_values=cache)
    with pytest.raises(UnsupportedModel, match="called without a memory"):
        model(prompt())
    assert cache.get_seq_length() == 0
    model(prompt(rows=2), past_key_values=cache)
    with pytest.raises(UsageError, match="holds 2 rows and was called with 1"):
        model(prompt(), past_key_values=cache)
    model.set_attn_implementation("sdpa")
    with pytest.raises(UnsupportedModel, match="given another attention"):
        model(prompt(rows=2), past_key_values=cache)
    model.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(UsageError, match="masks that flex_attention cannot take"):
        StreamCache(model, "window", 12)


@torch.no_grad()
def test_the_cache_is_on_the_output() -> None:
    for family in ("llama", "mpt"):
        model = model_with(family)
        cache = StreamCache(model, "streaming-llm", 12)
        assert model(prompt(5), past_key_values=cache).past_key_values is cache
        assert model(prompt(5), past_key_values=cache, return_dict=False)[1] is cache
        assert cache.get_seq_length() == 10


def test_frequencies_that_change_need_our_attention() -> None:
    model = model_with("llama-longrope", "sdpa")
    with pytest.raises(UnsupportedModel, match="changes its rotary frequencies after 1024"):
        StreamCache(model, "window", 12)
    model = model_with("llama-longrope")
    model.generate(prompt(), past_key_values=StreamCache(model, "window", 12), **GREEDY)


@torch.no_grad()
def test_a_prompt_that_is_too_long_leaves_no_trace() -> None:
    """The second of its steps is refused; the first one is taken back before anything was written."""
    model = model_with("gpt2")
    cache = StreamCache(model, "dense")
    expected = model(prompt(), past_key_values=cache).logits
    cache.reset()
    with pytest.raises(ContextFull, match="learned positions for 256 tokens"):
        model(prompt(300), past_key_values=cache)
    assert cache.get_seq_length() == 0
    assert torch.equal(model(prompt(), past_key_values=cache).logits, expected)


@torch.no_grad()
def test_a_failed_pass_is_not_half_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a layer fails, its rows say so instead of answering from layers that are ahead of others."""
    model = model_with("llama")
    cache = StreamCache(model, "streaming-llm", 12)
    model(prompt(), past_key_values=cache)
    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[1].mlp, "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(prompt(3), past_key_values=cache)
    assert cache.get_seq_length() == 40
    with pytest.raises(MemoryStateError, match="half written"):
        model(prompt(3), past_key_values=cache)
    cache.reset()
    model(prompt(), past_key_values=cache)


def test_a_cache_that_is_gone_leaves_nothing() -> None:
    for family in ("llama", "falcon"):
        model = model_with(family)
        cache = StreamCache(model, "streaming-llm", 12)
        model.generate(prompt(), past_key_values=cache, **GREEDY)
        del cache
        gc.collect()
        assert not model._forward_hooks
        assert not model._forward_pre_hooks
        assert not [name for name in model.__dict__ if "penstock" in name]
        assert "forward" not in model.__dict__
