"""The native step: equal to the specification on every instruction set and kind of step; refused with reasons."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.core import Span
from penstock.errors import UsageError
from penstock.kernels import library as lib
from penstock.kernels.step import Native, weights_of
from penstock.kernels.weights import Weights, obstacle
from penstock.memory import Memory
from penstock.methods import parse
from penstock.models import native as native_room
from penstock.models.attach import Attached
from penstock.models.load import load
from penstock.models.native import NativeSteps, choose
from penstock.models.probe import attach
from penstock.session import Session
from penstock.testing import tiny_model, tiny_tokens

pytestmark = pytest.mark.skipif(lib.library() is None, reason=lib.ABSENT)

# Rows in different phases, through the sinks, past the end of the window, chunks longer than it.
STEPS = [{0: 3, 1: 40}, {0: 1}, {1: 1}, {0: 30, 1: 1, 2: 5}, {0: 1, 1: 1, 2: 1}, {0: 64, 1: 7}, {2: 1}] + [
    {0: 1, 1: 1}
] * 9


@pytest.fixture
def chosen() -> Iterator[int]:
    """The instruction set is put back afterwards."""
    before = lib.library().pk_chosen()
    yield before
    lib.library().pk_choose(before)


def torch_step(model: Attached, memory: Memory, packed: dict[int, Tensor]) -> Tensor:
    with torch.no_grad(), memory.step([Span(row, len(part)) for row, part in packed.items()]) as step:
        out = model.run(torch.cat(list(packed.values())), step, None, "all")
    assert out is not None
    return out


def native_step(native: Native, packed: dict[int, Tensor]) -> Tensor:
    spans, tokens = [Span(row, len(part)) for row, part in packed.items()], torch.cat(list(packed.values()))
    with native.memory.step(spans, planned=False):
        out = native.run(spans, tokens, torch.arange(len(tokens)))
    assert out is not None
    return out


def largest_difference(model: Attached, method: str, int8: bool = False, far: int = 0) -> float:
    """Of logits, relative to the largest, over mixed steps of three rows."""
    cascades = parse(method).cascades(model.geometry, None if method == "dense" else 24)
    ours, theirs = Memory(model.geometry, cascades, 3), Memory(model.geometry, cascades, 3)
    native = Native(weights_of(model.hf, model.geometry, int8), ours, model.vocabulary)
    worst = 0.0
    for i, counts in enumerate(STEPS):
        packed = {row: tiny_tokens(count, 10 * i + row) for row, count in counts.items()}
        got, expected = native_step(native, packed), torch_step(model, theirs, packed)
        worst = max(worst, float((got - expected).abs().max() / expected.abs().max().clamp_min(1.0)))
        if far and i == 5:
            for memory in (ours, theirs):
                memory.shift(far, 0)
    for a, b in zip(ours.save_row(0).values(), theirs.save_row(0).values()):
        assert (a.float() - b.float()).abs().max() <= 0.1  # and what is stored is the same
    return worst


@pytest.mark.parametrize("which", range(len(lib.SETS)), ids=lib.SETS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_every_instruction_set_equals_the_specification(which: int, family: str, chosen: int) -> None:
    if not lib.library().pk_choose(which):
        pytest.skip(f"no {lib.SETS[which]} here")
    assert largest_difference(attach(tiny_model(family, seed=3)), "streaming-llm") <= 1e-5


@pytest.mark.parametrize("family", ["llama-yarn", "llama-llama3", "mistral"])
@pytest.mark.parametrize("method", ["streaming-llm", "dense"])
def test_scaled_rotations_and_layers_with_windows(family: str, method: str) -> None:
    assert largest_difference(attach(tiny_model(family, seed=4)), method) <= 1e-5


def test_a_tied_head_and_many_query_heads() -> None:
    model = tiny_model("llama", tie_word_embeddings=True, num_attention_heads=16, num_key_value_heads=1, head_dim=32)
    assert largest_difference(attach(model), "window") <= 1e-5


@pytest.mark.parametrize("far", [50_000, 1 << 40])
def test_far_positions(far: int) -> None:
    assert largest_difference(attach(tiny_model("llama", seed=5)), "streaming-llm", far=far) <= 1e-4


def test_bfloat16_is_as_close_as_its_rounding() -> None:
    assert largest_difference(attach(tiny_model("qwen3", seed=3).to(torch.bfloat16)), "streaming-llm") <= 0.05


def test_int8_weights_are_close_and_not_equal() -> None:
    assert 1e-4 < largest_difference(attach(tiny_model("llama", seed=3)), "streaming-llm", int8=True) <= 0.1


@pytest.mark.parametrize("which", range(len(lib.SETS)), ids=lib.SETS)
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_every_number_of_tokens_gives_what_one_by_one_gives(which: int, weights: str, chosen: int) -> None:
    """Products take rows in blocks of many sizes, each a function of its own."""
    if not lib.library().pk_choose(which):
        pytest.skip(f"no {lib.SETS[which]} here")
    hf = tiny_model("llama", seed=8)
    model = attach(hf.to(torch.bfloat16) if weights == "bfloat16" else hf)
    memory = Memory(model.geometry, parse("streaming-llm").cascades(model.geometry, 48), 1)
    native = Native(weights_of(model.hf, model.geometry, weights == "int8"), memory, model.vocabulary)
    tokens = tiny_tokens(44, 3)
    alone = torch.cat([native_step(native, {0: token[None]}) for token in tokens]).float()
    tolerance = (0.05 if weights == "bfloat16" else 1e-5) * float(alone.abs().max())
    for count in range(2, 45):
        memory.reset(0)
        together = native_step(native, {0: tokens[:count]}).float()
        assert (together - alone[:count]).abs().max() <= tolerance, f"{count} tokens"


def by_threads(model: Attached, steps: list[dict[int, Tensor]]) -> list[Tensor]:
    """The logits of the same steps by 1, 3, 5 and 2 threads."""
    memory = Memory(model.geometry, parse("streaming-llm").cascades(model.geometry, 48), 2)
    outs = []
    for threads in (1, 3, 5, 2):
        native = Native(weights_of(model.hf, model.geometry), memory, model.vocabulary)
        native._threads = lambda count, threads=threads: threads  # type: ignore[method-assign]
        memory.reset(0)
        outs.append(torch.cat([native_step(native, step) for step in steps]))
    return outs


def test_threads_share_a_step_and_more_of_them_change_no_logit() -> None:
    steps = [{0: tiny_tokens(30, 1)}, *({0: tiny_tokens(1, i)} for i in range(40)), {0: tiny_tokens(9, 2)}]
    first, *others = by_threads(attach(tiny_model("llama", seed=6)), steps)
    for out in others:
        assert (out - first).abs().max() <= 1e-5 * first.abs().max()


def test_two_threads_and_a_forked_process_step_at_once() -> None:
    model = load(tiny_model("llama", seed=7))
    expected = _answer(model)
    found: list[Tensor] = []
    workers = [threading.Thread(target=lambda: found.append(_answer(model))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(found) == 3
    assert all(torch.equal(one, expected) for one in found)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(_answer(model), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def _answer(model: Any) -> Tensor:
    session = Session(model, "streaming-llm", 24, path="native", chunk=8)
    session.ingest(list(range(1, 60)))
    for token in range(2, 12):
        out = session.decode(token)
    return out


def test_paths_are_switched_and_marks_rolled_back_over_one_memory() -> None:
    model = load(tiny_model("llama", seed=8))
    native, eager = (Session(model, "streaming-llm", 24, path=path, chunk=8) for path in ("native", "eager"))
    for one in (native, eager):
        one.ingest(list(range(1, 60)))
    mark = native.mark()
    before = native.decode(7)
    native.ingest(list(range(20, 50)))
    native.rollback(mark)
    assert torch.equal(native.decode(7), before)
    native._memory.copy_row(0, eager._memory, 0)
    expected, got = eager.decode(9), native.decode(9)
    assert (expected - got).abs().max() <= 1e-5 * expected.abs().max()


def test_weights_that_are_written_to_are_taken_again() -> None:
    hf = tiny_model("llama", seed=9)
    model = attach(hf)
    first = weights_of(hf, model.geometry)
    assert weights_of(hf, model.geometry) is first
    with torch.no_grad():
        hf.model.layers[0].mlp.up_proj.weight.mul_(2.0)
    assert weights_of(hf, model.geometry) is not first
    assert largest_difference(model, "window") <= 1e-5


def test_weights_of_inference_mode_have_no_version_and_are_taken() -> None:
    with torch.inference_mode():
        model = attach(tiny_model("llama", seed=2))
        assert next(model.hf.parameters()).is_inference()
        assert largest_difference(model, "window") <= 1e-5


@pytest.mark.parametrize(
    ("family", "reason"),
    [("gpt_neox", "Llama"), ("gemma2", "of its own kind"), ("gpt_oss", "Llama"), ("phi3", "Llama")],
)
def test_other_blocks_are_refused_and_run_on_pytorch(family: str, reason: str) -> None:
    model = load(tiny_model(family))
    with pytest.raises(UsageError, match=reason):
        Session(model, "window", 48, path="native")
    session = Session(model, "window", 48)
    assert session.runner.now == "eager"
    assert "not natively, because" in session.runner.explanation


def test_a_multiplier_that_no_module_shows_is_caught_by_its_logits() -> None:
    model = attach(tiny_model("granite"))
    memory = Memory(model.geometry, parse("window").cascades(model.geometry, 24))
    assert obstacle(model.hf, model.geometry) is None
    native, reason = choose(model, memory, "auto")
    assert native is None
    assert "logits differ" in reason


@pytest.mark.parametrize("method", ["infllm", "duo-attention", "kv8", "streaming-llm:positions=contiguous"])
def test_any_other_memory_attends_between_native_stretches(method: str) -> None:
    model = load(tiny_model("qwen3", seed=3))
    assert Session(model, method, 96).runner.now == "native"
    outs = {}
    for path in ("native", "eager"):
        session = Session(model, method, 96, path=path, chunk=16)
        session.ingest([7 * i % 128 for i in range(131)])
        outs[path] = torch.stack([session.decode(token) for token in range(5, 25)])
    limit = 1e-3 if method == "kv8" else 1e-5  # a code may be another one by the last bit of a product
    assert (outs["native"] - outs["eager"]).abs().max() <= limit * outs["eager"].abs().max()


def test_without_the_library_all_runs_and_it_is_said_once(monkeypatch: Any) -> None:
    model = load(tiny_model("llama", seed=10))
    monkeypatch.setattr(lib, "library", lambda: None)
    native_room._say_once.cache_clear()
    with pytest.warns(UserWarning, match="install g"):
        session = Session(model, "streaming-llm", 24)
    session.ingest(list(range(1, 20)))
    assert session.runner.now == "eager"
    with pytest.raises(UsageError, match="not built"):
        Session(model, "streaming-llm", 24, path="native")


def test_weights_tell_their_size() -> None:
    model = attach(tiny_model("llama", seed=11))
    matrices = sum(p.numel() for n, p in model.hf.named_parameters() if p.dim() == 2 and "embed" not in n)
    assert Weights(model.hf, model.geometry, lib.FLOAT32).nbytes >= 4 * matrices


def test_rows_that_decode_together_stay_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyTorch has bfloat16 products in hardware it takes long chunks, not many rows of one token each."""
    monkeypatch.setattr("penstock.models.native.emulates", lambda dtype, device: False)
    attached = attach(tiny_model("llama", seed=3, head_dim=32).to(torch.bfloat16))
    memory = Memory(attached.geometry, parse("streaming-llm").cascades(attached.geometry, 64), rows=64)
    found, why = choose(attached, memory, "native")
    assert found is not None, why
    steps = NativeSteps(found, attached)
    assert steps.takes([Span(row, 1) for row in range(64)])
    assert steps.takes([Span(0, 31), Span(1, 31)])
    assert not steps.takes([Span(0, 1), Span(1, 32)])
