"""duo-attention against its card: checks (a) to (d), a masked softmax written out, and its two figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penstock.errors import BudgetError, CompositionError, UsageError
from penstock.memory import Cascade, Heads, Memory, Sinks, Window
from penstock.methods import parse
from penstock.methods.duo_attention import DuoAttention
from penstock.models.load import TINY
from penstock.testing import tiny_tokens

from .running import Running, difference

BUDGET = 96  # unit 4, 6 sinks, streaming heads keep 6 + 24


@pytest.fixture(scope="module")
def llama() -> Running:
    return Running.of("llama")


def test_composition(llama: Running) -> None:
    geometry = llama.attached.geometry
    placed = DuoAttention(heads="0.1+1.0+1.1").cascades(geometry, 512)
    full = Cascade((Sinks(32), Window(512 - 32 - 32)), "clamped", 32)
    short = Cascade((Sinks(32), Window(128 - 32)), "clamped", 32)
    assert placed[0] == Heads((((1,), full), ((0,), short)))
    assert placed[1] == Cascade((Sinks(32), Window(480)), "clamped")
    assert placed[2] == Cascade((Sinks(32), Window(128)), "clamped")
    assert placed[0].entries == 512
    assert short.entries == 32 + 128
    assert DuoAttention().cascade(1 << 20).sinks == 64  # the paper's sizes, where the budget has room for them
    assert DuoAttention().streaming(1 << 20).windows == (256,)


def test_mistakes() -> None:
    with pytest.raises(BudgetError, match="needs a budget"):
        DuoAttention().cascade(None)
    with pytest.raises(BudgetError, match="at least 5"):
        DuoAttention().cascade(4)
    with pytest.raises(UsageError, match="from 0 to 1"):
        parse("duo-attention:retrieval=2")
    with pytest.raises(CompositionError, match="choose 0 to 1"):
        DuoAttention(heads="0.7").cascades(Running.of("llama").attached.geometry, 96)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_all_gates_one_is_dense(llama: Running, chunk: int) -> None:
    tokens = tiny_tokens(BUDGET)
    got = llama.feed(llama.memory("duo-attention:retrieval=1", BUDGET), tokens, chunk)
    assert difference(got, llama.native(tokens)) < 1e-5


@pytest.mark.parametrize("heads", ["0.0", "0.1+1.0+2.1", "none"])
def test_b_a_stream_that_fits_is_dense_whatever_the_gates(llama: Running, heads: str) -> None:
    tokens = tiny_tokens(26)  # sinks and window of a streaming head, without the unit in which it moves
    got = llama.feed(llama.memory(f"duo-attention:heads={heads}", BUDGET), tokens, 7)
    assert difference(got, llama.native(tokens)) < 1e-5
    longer = tiny_tokens(60)  # and no longer than that
    got = llama.feed(llama.memory(f"duo-attention:heads={heads}", BUDGET), longer, 7)
    assert difference(got, llama.native(longer)) > 1e-3


def test_c_a_streaming_head_never_holds_more_than_sinks_and_window(llama: Running) -> None:
    memory = llama.memory("duo-attention:heads=0.1+1.0+2.1", BUDGET)
    for count in (3, 1, 7, 50, 1, 64, 2, 64, 64):
        llama.feed(memory, tiny_tokens(count, count))
        for group in memory.groups:
            for lanes in group.lanes[0]:
                full, streaming = [
                    len(lane.tail.entries) + sum(len(state["held"]) for state in lane.states) for lane in lanes
                ]
                assert streaming <= 30
                assert full <= BUDGET
                assert full == min(memory.length(), BUDGET) or memory.length() > BUDGET - 4


def test_d_the_order_of_heads_changes_nothing(llama: Running) -> None:
    """Every head a retrieval head, but in two branches: the logits are those of one memory."""
    tokens = tiny_tokens(200)
    one = Cascade((Sinks(6), Window(60)), "clamped", 4)
    geometry = llama.attached.geometry
    whole = llama.feed(Memory(geometry, [one] * 3), tokens, 64)
    turned = llama.feed(Memory(geometry, [Heads((((1,), one), ((0,), one)))] * 3), tokens, 64)
    assert difference(turned, whole) < 1e-6


def masked(
    model: Any, tokens: Tensor, full: set[tuple[int, int]], unit: int, sinks: int, sizes: dict[bool, int]
) -> Tensor:
    """Logits [N, V] float64 of a Llama written out, with a mask per head: what each unit's queries see."""
    config, width = model.config, model.config.head_dim
    count = len(tokens)
    index = torch.arange(count)
    start = index // unit * unit
    theta = config.rope_parameters["rope_theta"] ** -(torch.arange(0, width, 2).double() / width)

    def norm(layer: Any, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + layer.variance_epsilon).rsqrt() * layer.weight.double()

    def turn(x: Tensor) -> Tensor:
        angle = index.double()[:, None] * theta
        a, b = x.chunk(2, -1)
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)

    x = model.model.embed_tokens.weight.double()[tokens]
    for number, layer in enumerate(model.model.layers):
        y, attention = norm(layer.input_layernorm, x), layer.self_attn
        q, k, v = (
            (y @ getattr(attention, f"{name}_proj").weight.double().T).view(count, -1, width).transpose(0, 1)
            for name in "qkv"
        )
        outs = []
        for head in range(len(q)):
            kv = head // (len(q) // len(k))
            window = sizes[(number, kv) in full] - unit  # what is held where a unit begins
            held = (index[None] >= start[:, None] - window) | (index[None] < sinks)
            scores = turn(q[head]) @ turn(k[kv]).T * width**-0.5
            scores = scores.masked_fill(~(held & (index[None] <= index[:, None])), float("-inf"))
            outs.append(scores.softmax(-1) @ v[kv])
        x = x + torch.stack(outs, 1).flatten(1) @ attention.o_proj.weight.double().T
        y, mlp = norm(layer.post_attention_layernorm, x), layer.mlp
        gate = nn.functional.silu(y @ mlp.gate_proj.weight.double().T) * (y @ mlp.up_proj.weight.double().T)
        x = x + gate @ mlp.down_proj.weight.double().T
    return norm(model.model.norm, x) @ model.lm_head.weight.double().T


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 64])
def test_equals_a_mask_per_head_in_float64(llama: Running, chunk: int) -> None:
    tokens = tiny_tokens(90)  # retrieval heads still hold everything: the paper
    full = {(0, 1), (1, 0), (2, 1)}
    got = llama.feed(llama.memory("duo-attention:heads=0.1+1.0+2.1,positions=stream", BUDGET), tokens, chunk)
    expected = masked(llama.attached.hf, tokens, full, 4, 6, {True: BUDGET, False: 24})
    assert difference(got, expected) < 1e-5
    other = masked(llama.attached.hf, tokens, {(0, 0), (1, 0), (2, 1)}, 4, 6, {True: BUDGET, False: 24})
    assert difference(got, other) > 1e-3


@pytest.mark.parametrize("heads", ["0.0+0.4+1.5+2.2", "0.1+1.0+1.3+2.1+2.4"])
def test_heads_keep_their_own_slopes(heads: str) -> None:
    """ALiBi has a slope per head; placed apart, each keeps its own."""
    mpt, tokens = Running.of("mpt"), tiny_tokens(26)
    got = mpt.feed(mpt.memory(f"duo-attention:heads={heads}", BUDGET), tokens, 7)
    assert difference(got, mpt.native(tokens)) < 1e-5


# -- figures, on the shipped model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Any:
    from penstock.models.load import load

    return load(TINY, dtype="float32")


def test_half_the_heads_take_less_than_six_tenths_of_the_bytes(tiny: Any) -> None:
    """At a stream of eight times the streaming heads' window, all heads of which dense keeps."""
    geometry = tiny.attached.geometry
    method = DuoAttention(sinks=16, window=48)
    length = 8 * 64
    duo, dense = (Memory(geometry, m.cascades(geometry, length)) for m in (method, parse("dense")))
    tokens = torch.arange(length) % 1000 + 100
    running = Running(tiny.attached)
    for memory in (duo, dense):
        running.feed(memory, tokens, 64)
    assert sum(len(split[0]) for c in duo.cascades if isinstance(c, Heads) for split in c.branches[:1]) + 4 * sum(
        c.entries == length for c in duo.cascades if isinstance(c, Cascade)
    ) == 8  # of 16  # fmt: skip
    assert duo.nbytes <= 0.6 * dense.nbytes


@pytest.mark.slow
def test_half_the_heads_answer_what_all_heads_answer(tiny: Any) -> None:
    """50 questions inside the context of 512: dense answers nearly all, guessing 3 in 100."""
    from penstock.worlds import probe
    from penstock.worlds.evaluate import load_net
    from penstock.worlds.tokenizer import encode

    _, tokenizer = load_net(TINY)
    rows = probe.contiguous(lambda text: encode(tokenizer, text), 512, 50, seed=77)
    running, geometry = Running(tiny.attached), tiny.attached.geometry
    recall = {}
    for name, method in {
        "dense": parse("dense"), "duo": DuoAttention(sinks=16, window=48),
        "the other half": DuoAttention(sinks=16, window=48, heads=others(geometry)),
    }.items():  # fmt: skip
        asked = 15 if name == "the other half" else len(rows.answers)
        right = 0
        for row, answer in zip(rows.tokens[:asked], rows.answers[:asked]):
            logits = running.feed(Memory(geometry, method.cascades(geometry, 512)), row)
            right += int(logits[-1].argmax() == answer)
        recall[name] = right / asked
    assert recall["duo"] >= recall["dense"] - 0.02
    assert recall["the other half"] < 0.5


def others(geometry: Any) -> str:
    """The heads that the shipped gates do not choose."""
    from penstock.memory.placement import choose

    chosen = choose("", geometry, ("heads",), share=0.5)
    return "+".join(f"{i}.{h}" for i in range(4) for h in range(4) if (i, h) not in chosen)
