"""flux-attention against its card: all full is dense, all sparse is sinks and window, rows of a sparse layer."""

from __future__ import annotations

import pytest
import torch

from penstock.errors import BudgetError, CompositionError, UsageError
from penstock.memory import Cascade, Sinks, Window
from penstock.methods import parse
from penstock.methods.flux_attention import FluxAttention
from penstock.testing import tiny_tokens

from .running import Running, difference

BUDGET = 64


@pytest.fixture(scope="module")
def llama() -> Running:
    return Running.of("llama")


def test_composition(llama: Running) -> None:
    full = Cascade((Sinks(4), Window(60)), "clamped")
    sparse = Cascade((Sinks(4), Window(16)), "clamped")
    geometry = llama.attached.geometry
    assert parse("flux-attention:layers=1").cascades(geometry, BUDGET) == (sparse, full, sparse)
    assert parse("flux-attention").cascades(geometry, BUDGET) == (full, sparse, full)  # two of three, spread
    assert FluxAttention().cascade(1 << 20).sinks == 128
    assert FluxAttention().sparse(1 << 20).windows == (2048,)


def test_layers_with_a_window_keep_it() -> None:
    gemma = Running.of("gemma3")
    placed = parse("flux-attention:full=0").cascades(gemma.attached.geometry, BUDGET)
    assert placed[0] == placed[2] == Cascade((Window(16),))
    assert placed[1] == FluxAttention().sparse(BUDGET)


def test_mistakes(llama: Running) -> None:
    with pytest.raises(BudgetError, match="needs a budget"):
        FluxAttention().cascade(None)
    with pytest.raises(BudgetError, match="at least 4"):
        FluxAttention().cascade(3)
    with pytest.raises(UsageError, match="from 0 to 1"):
        parse("flux-attention:full=-1")
    with pytest.raises(CompositionError, match="choose among 0, 1, 2"):
        parse("flux-attention:layers=3").cascades(llama.attached.geometry, BUDGET)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_all_full_is_dense_bit_for_bit(llama: Running, chunk: int) -> None:
    """While the stream fits, a full layer runs what a memory of everything runs, decode steps apart."""
    tokens = tiny_tokens(BUDGET)
    got = llama.feed(llama.memory("flux-attention:full=1,positions=stream", BUDGET), tokens, chunk)
    dense = llama.feed(llama.memory("dense"), tokens, chunk)
    assert difference(got, dense) < 1e-6
    assert torch.equal(got.argmax(-1), dense.argmax(-1))
    assert difference(got, llama.native(tokens)) < 1e-5


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("positions", ["clamped", "stream"])
def test_all_sparse_is_sinks_and_window(llama: Running, chunk: int, positions: str) -> None:
    tokens = tiny_tokens(200)
    got = llama.feed(llama.memory(f"flux-attention:full=0,positions={positions}", BUDGET), tokens, chunk)
    same = llama.feed(llama.memory(f"streaming-llm:sinks=4,positions={positions}", 20), tokens, chunk)
    assert torch.equal(got, same)


def test_a_sparse_layer_holds_sinks_and_window(llama: Running) -> None:
    memory = llama.memory("flux-attention:layers=1", BUDGET)
    for count in (3, 1, 50, 64, 1):
        llama.feed(memory, tiny_tokens(count, count))
        rows = dict.fromkeys(range(3), 0)
        for view in memory.view():
            for layer in view.layers:
                rows[layer] += len(view.seen)
        assert rows[0] == rows[2] == min(memory.length(), 20)
        assert rows[1] == min(memory.length(), BUDGET)


def test_the_map_does_not_depend_on_the_text(llama: Running) -> None:
    """The card's routing is a function of the prompt alone; ours is one of the model alone."""
    geometry = llama.attached.geometry
    assert parse("flux-attention").cascades(geometry, BUDGET) == parse("flux-attention").cascades(geometry, BUDGET)
    tokens = tiny_tokens(200)
    outs = [llama.feed(llama.memory(f"flux-attention:layers={layer}", BUDGET), tokens, 64) for layer in (0, 1, 2)]
    assert difference(outs[0], outs[1]) > 1e-3
    assert difference(outs[1], outs[2]) > 1e-3
