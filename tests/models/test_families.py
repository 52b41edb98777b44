"""Every family against itself: a memory that keeps everything gives the model's own logits, whatever the steps.

The streams are longer than the models' sliding windows, and the weights make attention uneven, so that a wrong window,
position, scale or head shows; `test_comparison_is_sensitive` keeps that true.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.core import Span
from penstock.errors import ContextFull, UnsupportedModel
from penstock.memory import Alibi, Geometry, Memory, Rotary
from penstock.methods import parse
from penstock.models.attach import Attached
from penstock.models.probe import attach
from penstock.models.support import check_supported
from penstock.testing import LEARNED, SLIDING, families, tiny_model, tiny_tokens

LENGTH = 100
ABSOLUTE = ("gpt2", "opt")
MOVABLE = tuple(f for f in families() if f not in ABSOLUTE)


@cache
def attached(family: str) -> tuple[Attached, Tensor]:
    """An attached tiny model and its own logits [LENGTH, V] for the test's stream."""
    hf: Any = tiny_model(family)
    if family == "gemma2":
        hf.set_attn_implementation("eager")  # sdpa of transformers 5.17 leaves out soft-capping
    with torch.no_grad():
        out: Any = hf(input_ids=tiny_tokens(LENGTH)[None], use_cache=False)
    return attach(hf), (out.logits if hasattr(out, "logits") else out.last_hidden_state)[0]


def memory_of(geometry: Geometry, method: str, budget: int | None, naive: bool = False) -> Memory:
    return Memory(geometry, parse(method).cascades(geometry, budget), naive=naive)


@torch.no_grad()
def read(model: Attached, memory: Memory, tokens: Tensor, chunk: int) -> Tensor:
    """[N, V] logits of a stream read in steps of `chunk`."""
    out = []
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        at = memory.length()
        positions = torch.arange(at, at + len(part)) if model.geometry.is_absolute else None
        with memory.step([Span(0, len(part))]) as step:
            logits = model.run(part, step, positions, "all")
        assert logits is not None
        out.append(logits)
    return torch.cat(out)


def assert_same(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    difference, size = float((a - b).abs().max()), max(1.0, float(b.abs().max()))
    assert difference <= tolerance * size, f"logits of up to {size:.3g} differ by {difference:.3g}"


@pytest.mark.parametrize("chunk", [1, 7, 64, LENGTH])
@pytest.mark.parametrize("family", families())
def test_dense_equals_the_model(family: str, chunk: int) -> None:
    model, expected = attached(family)
    assert_same(read(model, memory_of(model.geometry, "dense", None), tiny_tokens(LENGTH), chunk), expected)


@pytest.mark.parametrize("method", ["streaming-llm", "window"])
@pytest.mark.parametrize("family", MOVABLE)
def test_large_budget_equals_the_model(family: str, method: str) -> None:
    model, expected = attached(family)
    for budget, chunk in ((LENGTH, 7), (LENGTH + 50, 1)):
        assert_same(read(model, memory_of(model.geometry, method, budget), tiny_tokens(LENGTH), chunk), expected)


@pytest.mark.parametrize(
    ("family", "method"), [(f, "streaming-llm") for f in MOVABLE] + [(f, "window") for f in ("llama", "gemma3", "mpt")]
)
def test_small_budget_equals_the_specification(family: str, method: str) -> None:
    model, dense = attached(family)
    tokens = tiny_tokens(LENGTH)
    expected = read(model, memory_of(model.geometry, method, 12, naive=True), tokens, LENGTH)
    for chunk in (1, 7, 64, LENGTH):
        assert_same(read(model, memory_of(model.geometry, method, 12), tokens, chunk), expected)
    if not all(layer.window == SLIDING for layer in model.geometry.layers):
        assert float((expected - dense)[20:].abs().max()) > 1e-2, "the small memory never forgot anything"


def _spoiled(geometry: Geometry) -> dict[str, Geometry]:
    """Geometries that are wrong in one thing."""

    def changed(**change: Any) -> Geometry:
        layers = [dataclasses.replace(ly, **{k: f(ly) for k, f in change.items()}) for ly in geometry.layers]
        return dataclasses.replace(geometry, layers=tuple(layers))

    def slower(layer: Any) -> Any:
        code = layer.encoding
        if isinstance(code, Rotary):
            return Rotary(code.inv_freq * 0.98, code.interleaved)
        return Alibi(code.slopes * 0.98) if isinstance(code, Alibi) else None

    def swapped(layer: Any) -> Any:
        code = layer.encoding
        return Rotary(code.inv_freq, not code.interleaved) if isinstance(code, Rotary) else code

    out = {}
    if any(layer.encoding is not None for layer in geometry.layers):
        out["frequencies"] = changed(encoding=slower)
    if any(isinstance(layer.encoding, Rotary) for layer in geometry.layers):
        out["pairing"] = changed(encoding=swapped)
    if any(layer.window for layer in geometry.layers):
        out["longer windows"] = changed(window=lambda ly: ly.window and ly.window + 1)
        out["shorter windows"] = changed(window=lambda ly: ly.window and ly.window - 1)
    return out


@pytest.mark.parametrize("family", MOVABLE)
def test_comparison_is_sensitive(family: str) -> None:
    model, expected = attached(family)
    for name, geometry in _spoiled(model.geometry).items():
        wrong = Attached(model.hf, geometry, model.vocabulary, model.own, model.adapter)
        logits = read(wrong, memory_of(geometry, "dense", None), tiny_tokens(LENGTH), 64)
        difference = float((logits - expected).abs().max()) / max(1.0, float(expected.abs().max()))
        assert difference > 1e-3, f"wrong {name} change the logits by {difference:.2g} only"


def test_the_families_are_different() -> None:
    """The probe found what each family is known for."""
    found = {family: attached(family)[0].geometry for family in families()}
    windows = {family: [layer.window for layer in g.layers] for family, g in found.items()}
    assert windows["mistral"] == [SLIDING] * 3
    for family in ("gemma3", "cohere2", "gpt_oss"):
        assert windows[family] == [SLIDING, None, SLIDING]
    assert windows["gemma2"] == [SLIDING, None, SLIDING]
    assert windows["llama"] == [None] * 3
    first = {family: g.layers[0] for family, g in found.items()}
    assert [first[f].encoding.width for f in ("llama", "gpt_neox", "phi3")] == [16, 4, 8]  # type: ignore[union-attr]
    assert first["cohere2"].encoding.interleaved  # type: ignore[union-attr]
    assert found["cohere2"].layers[1].encoding is None
    thetas = [layer.encoding.inv_freq[1] for layer in found["gemma3"].layers]  # type: ignore[union-attr]
    assert thetas[0] == thetas[2] != thetas[1]
    assert [first[f].kv_heads for f in ("falcon", "falcon-new", "falcon-alibi", "llama")] == [1, 2, 4, 2]
    assert isinstance(first["mpt"].encoding, Alibi)
    assert isinstance(first["falcon-alibi"].encoding, Alibi)
    assert [found[f].reach for f in ("llama", "llama-yarn", "llama-dynamic", "llama-longrope")] == [
        None, None, 4096, 1024,
    ]  # fmt: skip
    assert all(g.is_absolute == (family in ABSOLUTE) for family, g in found.items())


@pytest.mark.parametrize("family", ABSOLUTE)
def test_learned_positions_end_with_their_table(family: str) -> None:
    model, _ = attached(family)
    assert model.geometry.max_positions == LEARNED
    tokens = tiny_tokens(LEARNED)
    memory = memory_of(model.geometry, "dense", None)
    with torch.no_grad(), model.native():
        expected = model.hf(input_ids=tokens[None], use_cache=False).logits[0]
    assert_same(read(model, memory, tokens, 64), expected)
    with pytest.raises(ContextFull, match="learned positions for 256 tokens"):
        read(model, memory, tokens[:1], 1)
    assert memory.length() == LEARNED, "the refused step left no trace"


@pytest.mark.parametrize("family", families())
def test_which_methods_are_supported(family: str) -> None:
    geometry = attached(family)[0].geometry
    check_supported(geometry, parse("dense"))
    for method in ("streaming-llm", "window"):
        if family in ABSOLUTE:
            with pytest.raises(UnsupportedModel, match=r"learned positions.*memory=dense for up to 256 tokens"):
                check_supported(geometry, parse(method))
        else:
            check_supported(geometry, parse(method), 12)


def test_frequencies_that_change_in_long_texts_bound_the_memory() -> None:
    """Beyond 1024 tokens longrope turns by other frequencies: neither a larger nor a growing memory goes there."""
    model, _ = attached("llama-longrope")
    check_supported(model.geometry, parse("streaming-llm"), 1024)
    with pytest.raises(UnsupportedModel, match="at most 1024"):
        check_supported(model.geometry, parse("streaming-llm"), 1025)
    tokens = tiny_tokens(1024)
    memory = memory_of(model.geometry, "dense", None)
    with torch.no_grad(), model.native():
        expected = model.hf(input_ids=tokens[None], use_cache=False).logits[0]
    assert_same(read(model, memory, tokens, 256), expected)
    with pytest.raises(ContextFull, match="changes its rotary frequencies after 1024"):
        read(model, memory, tokens[:1], 1)
    read(model, memory_of(model.geometry, "window", 64), tiny_tokens(1100), 256)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3", "falcon-alibi", "mpt"])
def test_half_precision(family: str) -> None:
    """bfloat16 keeps 8 bits: the logits agree with the model's own to a few per cent of the largest one."""
    hf = tiny_model(family).to(torch.bfloat16)
    tokens = tiny_tokens(LENGTH)
    with torch.no_grad():
        expected = hf(input_ids=tokens[None], use_cache=False).logits[0].float()
    model = attach(hf)
    assert model.geometry.dtype == torch.bfloat16
    for chunk in (1, 64):
        logits = read(model, memory_of(model.geometry, "dense", None), tokens, chunk).float()
        assert_same(logits, expected, tolerance=0.1)
        assert float((logits - expected).abs().mean()) < 0.02
