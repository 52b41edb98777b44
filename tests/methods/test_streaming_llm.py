"""streaming-llm against its card: checks (a) to (d), the cache-rank reference, and positions without end."""

from __future__ import annotations

import pytest
import torch

from penstock.core import Span
from penstock.errors import BudgetError
from penstock.memory import Cascade, Sinks, Window
from penstock.memory.naive import Held, numbered
from penstock.methods import parse
from penstock.methods.streaming_llm import StreamingLLM
from penstock.models.attach import forward
from penstock.testing import tiny_tokens

from .reference import CacheRank
from .running import Running, difference

SINKS, BUDGET = 4, 24


@pytest.fixture(scope="module")
def llama() -> Running:
    return Running.of("llama")


def test_composition() -> None:
    method = StreamingLLM()
    assert method.cascade(1024) == Cascade((Sinks(4), Window(1020)), "clamped")
    assert StreamingLLM(sinks=1, positions="stream").cascade(2) == Cascade((Sinks(1), Window(1)), "stream")
    with pytest.raises(BudgetError, match=r"a budget of 4 is smaller than 4 sinks .* give at least 5, or fewer sinks"):
        method.cascade(4)
    with pytest.raises(BudgetError, match="needs a budget"):
        method.cascade(None)
    with pytest.raises(BudgetError, match="0 or more"):
        parse("streaming-llm:sinks=-1").cascade(10)


@pytest.mark.parametrize("positions", ["clamped", "contiguous", "stream"])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_equals_dense_while_the_stream_fits(llama: Running, positions: str, chunk: int) -> None:
    tokens = tiny_tokens(BUDGET)
    got = llama.feed(llama.memory(f"streaming-llm:positions={positions}", BUDGET), tokens, chunk)
    assert difference(got, llama.native(tokens)) < 1e-5
    longer = tiny_tokens(BUDGET + 8)  # and no longer than that
    got = llama.feed(llama.memory(f"streaming-llm:positions={positions}", BUDGET), longer, chunk)
    assert difference(got, llama.native(longer)) > 1e-3


def test_b_entries_and_positions_are_bounded(llama: Running) -> None:
    """Never more than S + W rows, and no position id above S + W."""
    memory, naive = (llama.memory("streaming-llm:positions=contiguous", BUDGET, naive) for naive in (False, True))
    for count in (3, 1, 7, 50, 1, 1, 64):
        tokens = tiny_tokens(count, count)
        llama.feed(memory, tokens)
        llama.feed(naive, tokens)
        assert sum(len(view.seen) for view in memory.view()) <= BUDGET
        for layer in naive.groups[0].rooms[0]:
            entries = sorted((e for s in layer for e in s.entries), key=lambda e: e.seen)
            assert len(entries) <= BUDGET
            positions, sink_query, query = numbered(entries, SINKS, BUDGET, "contiguous")
            assert max(*positions, sink_query, query) < BUDGET
    stored = [Held(torch.empty(0), torch.empty(0), j) for j in (0, 1, 2, 3, *range(10**6, 10**6 + 20))]
    positions, clamp, _ = numbered(stored, SINKS, BUDGET, "clamped")
    assert clamp == BUDGET - 1  # as far as the sinks can tell, the newest token stands there for ever


def test_c_one_layer_equals_dense_on_what_is_kept() -> None:
    """With one layer a key depends on its token alone, so forgetting is the same as never having read."""
    single = Running.of("llama", num_hidden_layers=1)
    tokens = tiny_tokens(100)
    for chunk in (1, 7, 64):
        streamed = single.feed(single.memory("streaming-llm", BUDGET), tokens, chunk)
        for now in (10, 23, 24, 25, 50, 99):
            newest = tokens[max(SINKS, now + 1 - (BUDGET - SINKS)) : now + 1]
            expected = single.native(torch.cat((tokens[:SINKS], newest)))[-1]
            assert difference(streamed[now], expected) < 1e-5


def test_c_deeper_models_remember_through_what_is_kept(llama: Running) -> None:
    """Kept entries were computed while reading tokens that have since left: dense on the rest is another function."""
    tokens = tiny_tokens(100)
    streamed = llama.feed(llama.memory("streaming-llm", BUDGET), tokens, 7)
    expected = llama.native(torch.cat((tokens[:SINKS], tokens[-(BUDGET - SINKS) :])))[-1]
    assert difference(streamed[-1], expected) > 1e-2


def test_d_chunks_do_not_matter(llama: Running) -> None:
    tokens = tiny_tokens(317)
    whole = llama.feed(llama.memory("streaming-llm", BUDGET), tokens)
    for chunk in (1, 7, 64):
        assert difference(llama.feed(llama.memory("streaming-llm", BUDGET), tokens, chunk), whole) < 1e-5


@pytest.mark.parametrize("positions", ["clamped", "contiguous"])
@pytest.mark.parametrize("chunk", [1, 64])
def test_equals_the_paper_in_float64(llama: Running, positions: str, chunk: int) -> None:
    tokens = tiny_tokens(400)
    paper = CacheRank(llama.attached.hf, SINKS, BUDGET)
    expected = paper.read(tokens)
    got = llama.feed(llama.memory(f"streaming-llm:positions={positions}", BUDGET), tokens, chunk)
    assert difference(got, expected) < 1e-5
    assert torch.equal(got.argmax(-1), expected.argmax(-1))
    assert paper.largest_position == BUDGET - 1


@pytest.mark.parametrize("method", ["streaming-llm", "window"])
def test_a_decode_step_is_one_graph_and_answers_the_same(method: str) -> None:
    """Captured by the compiler (not tuned: that takes a minute), from a ring half full to one that wrapped twice."""
    model = Running.of("llama")
    tokens, read = tiny_tokens(70), 10
    expected = model.feed(model.memory(method, BUDGET), tokens, 7)

    def decode(ids: torch.Tensor, step: object) -> torch.Tensor | None:
        return forward(model.attached.hf, None, ids, step, None, "last")

    captured = torch.compile(decode, fullgraph=True, dynamic=False, backend="aot_eager")
    memory = model.memory(method, BUDGET)
    model.feed(memory, tokens[:read])
    for now in range(read, len(tokens)):
        with memory.step([Span(0, 1)]) as step, torch.no_grad():
            got = captured(tokens[now : now + 1], step)
        assert difference(got[0], expected[now]) < 1e-5


def test_the_stream_policy_is_another_function(llama: Running) -> None:
    """Its sinks recede; the paper's do not.  If these agreed, the clamp would be dead code."""
    tokens = tiny_tokens(400)
    got = llama.feed(llama.memory("streaming-llm:positions=stream", BUDGET), tokens, 64)
    assert difference(got, CacheRank(llama.attached.hf, SINKS, BUDGET).read(tokens)) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "cohere2", "mpt"])
@pytest.mark.parametrize("by", [4_194_304, 2**40])
def test_positions_never_end(family: str, by: int) -> None:
    """Past 4,194,304 tokens, where float32 angles are off by a quarter radian, the logits are those near zero."""
    model = Running.of(family)
    near, far = (model.memory("streaming-llm", BUDGET) for _ in range(2))
    for memory in (near, far):
        model.feed(memory, tiny_tokens(200), 64)
    far.shift(by)
    for chunk, seed in ((1, 1), (7, 2), (64, 3)):
        tokens = tiny_tokens(70, seed)
        got, expected = model.feed(far, tokens, chunk), model.feed(near, tokens, chunk)
        assert (got - expected).abs().max() < 1e-4
        assert torch.equal(got.argmax(-1), expected.argmax(-1))
    assert far.length() > by


def test_shifting_is_reading() -> None:
    """One layer, the same sinks and the same window: 3,000 tokens read between them, or only counted."""
    single = Running.of("llama", num_hidden_layers=1)
    head, newest, more = tiny_tokens(SINKS), tiny_tokens(BUDGET - SINKS, 1), tiny_tokens(50, 2)
    read, shifted = (single.memory("streaming-llm", BUDGET) for _ in range(2))
    single.feed(read, torch.cat((head, tiny_tokens(3000, 3), newest)), 64)
    single.feed(shifted, torch.cat((head, newest)), 64)
    shifted.shift(3000)
    assert shifted.length() == read.length()
    assert difference(single.feed(shifted, more, 7), single.feed(read, more, 7)) < 1e-5


def test_dropped_text_is_gone() -> None:
    """It does not extend the context: in one layer, what left the window has no influence at all."""
    single = Running.of("llama", num_hidden_layers=1)
    outs = []
    for seed in (1, 2):
        memory = single.memory("streaming-llm", BUDGET)
        single.feed(memory, torch.cat((tiny_tokens(SINKS), tiny_tokens(100, seed), tiny_tokens(BUDGET, 3))), 7)
        outs.append(single.feed(memory, tiny_tokens(9, 4), 1))
    assert torch.equal(outs[0], outs[1])


def test_sinks_stay(llama: Running) -> None:
    """The first four tokens still matter after a hundred windows."""
    outs = []
    for seed in (1, 2):
        memory = llama.memory("streaming-llm", BUDGET)
        llama.feed(memory, torch.cat((tiny_tokens(SINKS, seed), tiny_tokens(2400, 3))), 64)
        with memory.step([Span(0, 1)]) as step, torch.no_grad():
            outs.append(llama.attached.run(tiny_tokens(1), step))
    assert difference(outs[0], outs[1]) > 1e-3
