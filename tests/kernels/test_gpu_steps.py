"""Whole steps through the GPU kernels: a model's logits, replays of one recording, who is refused in which words."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from penstock.core import Span
from penstock.errors import UsageError
from penstock.kernels.gpu import available
from penstock.kernels.gpu.graphs import Replay, State
from penstock.memory import Memory, retrieval
from penstock.memory.retrieval import Bounds
from penstock.methods import parse
from penstock.models.attach import Attached
from penstock.models.gpu import GpuSteps
from penstock.models.paths import Runner
from penstock.models.probe import attach
from penstock.testing import tiny_model, tiny_tokens

if not available.interpreted():
    pytest.skip("Triton compiles for a device in this process", allow_module_level=True)

from penstock.kernels.gpu.pages import page_scores
from penstock.kernels.gpu.steps import memory_obstacle
from tests.kernels.gpu_tools import Tape

Step = dict[int, int]
BUDGET = 16


def eager_step(model: Attached, memory: Memory, step: Step, seed: int) -> Tensor:
    tokens = torch.cat([tiny_tokens(count, seed + row) for row, count in step.items()])
    with torch.no_grad(), memory.step([Span(row, count) for row, count in step.items()]) as planned:
        out = model.run(tokens, planned, None, "all")
    assert out is not None
    return out


def kernel_step(steps: GpuSteps, memory: Memory, step: Step, seed: int) -> Tensor:
    tokens = torch.cat([tiny_tokens(count, seed + row) for row, count in step.items()])
    spans = [Span(row, count) for row, count in step.items()]
    with torch.no_grad(), memory.step(spans, planned=False) as given:
        out = steps.run(given, spans, tokens, "all")
    assert out is not None
    return out


def memories(model: Attached, rows: int = 1) -> tuple[Memory, Memory]:
    cascades = parse("streaming-llm").cascades(model.geometry, BUDGET)
    return Memory(model.geometry, cascades, rows), Memory(model.geometry, cascades, rows)


def difference(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1.0))


# llama; windows of layers, soft caps and two groups of layers; learned sinks.
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_logits_equal_the_eager_path(family: str) -> None:
    """Chunks of 64 and 7, rows at different positions, past the end of the window; then the paths are exchanged."""
    kinds = {"gemma2": ["sliding_attention", "full_attention"], "gpt_oss": ["sliding_attention"]}.get(family)
    settings = {"num_hidden_layers": len(kinds), "layer_types": kinds} if kinds else {"num_hidden_layers": 1}
    model = attach(tiny_model(family, seed=3, **settings), verify=False)
    ours, theirs = memories(model, 2)
    steps = GpuSteps(model, ours, programs=4)
    first = 64 if family == "llama" else 15
    for i, step in enumerate([{0: first}, {0: 7, 1: 2}, {0: 1, 1: 3}, {0: 1, 1: 1}]):
        assert difference(kernel_step(steps, ours, step, i), eager_step(model, theirs, step, i)) <= 1e-4
    assert (
        difference(eager_step(model, ours, {0: 1}, 9), kernel_step(GpuSteps(model, theirs), theirs, {0: 1}, 9)) <= 1e-4
    )


def test_one_recording_serves_every_position_and_row() -> None:
    """What changes stands in tables: replays repeat operators and kernels and nothing of Python."""
    model = attach(tiny_model("llama", seed=4, num_hidden_layers=1), verify=False)
    ours, theirs = memories(model, 2)
    group = ours.groups[0]
    steps = GpuSteps(model, ours, Tape([*group.rings[0], *group.raw_sinks]), programs=4)
    for i, step in enumerate([{0: 7}, {1: 7}, {0: 7}, {1: 7}, {0: 7}]):  # the third is the first replay
        assert difference(kernel_step(steps, ours, step, i), eager_step(model, theirs, step, i)) <= 1e-4
    chunk = steps.steps.replays[0]
    assert chunk.state is State.RECORDED
    for i, step in enumerate([{0: 1}, {1: 1}, {0: 1}, {1: 1}]):
        if i == 3:
            for memory in (ours, theirs):
                memory.shift(100_003, 0)
            step = {0: 1}
        assert difference(kernel_step(steps, ours, step, i), eager_step(model, theirs, step, i)) <= 1e-4
    assert [replay.state for replay in steps.steps.replays] == [State.RECORDED] * 2
    assert steps.note == "kernels, each kind of step one graph"
    for a, b in zip(ours.save_row(0).values(), theirs.save_row(0).values()):
        assert torch.allclose(a, b, rtol=0, atol=1e-4)


def test_logits_of_chosen_rows_where_places_are_left_over() -> None:
    """Three rows take four places; what the fourth computes is nobody's."""
    model = attach(tiny_model("llama", seed=7, num_hidden_layers=1), verify=False)
    ours, theirs = memories(model, 3)
    steps = GpuSteps(model, ours, programs=4)
    spans, tokens = [Span(row, 1) for row in range(3)], tiny_tokens(3)
    first = {0: 4, 1: 9, 2: 5}
    assert difference(kernel_step(steps, ours, first, 0), eager_step(model, theirs, first, 0)) <= 1e-4
    for wanted, places in ((torch.tensor([2, 0]), [2, 0]), ("last", [2])):
        with torch.no_grad(), ours.step(spans, planned=False) as given:
            got = steps.run(given, spans, tokens, wanted)  # type: ignore[arg-type]
        with torch.no_grad(), theirs.step(spans) as planned:
            expected = model.run(tokens, planned, None, "all")
        assert got is not None
        assert expected is not None
        assert difference(got, expected[places]) <= 1e-4
    with torch.no_grad(), ours.step(spans, planned=False) as given:
        assert steps.run(given, spans, tokens, "none") is None


def test_single_tokens_compiled_around_the_kernels_and_a_compiler_that_fails() -> None:
    model = attach(tiny_model("llama", seed=6, num_hidden_layers=1), verify=False)

    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("no compiler here")

    for backend, words in (("eager", "single tokens compiled"), (broken, "no compiler here")):
        ours, theirs = memories(model)
        steps = GpuSteps(model, ours, programs=4, fuse=True, backend=backend)
        for i, step in enumerate([{0: 5}, {0: 1}]):
            assert difference(kernel_step(steps, ours, step, i), eager_step(model, theirs, step, i)) <= 1e-4
        assert words in steps.note


def test_marks_hold_what_kernels_overwrite() -> None:
    model = attach(tiny_model("llama", seed=5, num_hidden_layers=1), verify=False)
    ours, _ = memories(model)
    steps = GpuSteps(model, ours)
    kernel_step(steps, ours, {0: 30}, 1)
    before = ours.save_row()
    mark = ours.mark(max_new=8)
    kernel_step(steps, ours, {0: 5}, 2)
    kernel_step(steps, ours, {0: 1}, 3)
    ours.rollback(mark)
    after = ours.save_row()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_recordings_are_dropped_when_weights_are_replaced() -> None:
    model = attach(tiny_model("llama", seed=8, num_hidden_layers=1), verify=False)
    ours, _ = memories(model)
    runner = Runner(model, ours, "eager")
    runner._native = steps = GpuSteps(model, ours, Tape([]), programs=4)
    for _ in range(2):
        runner.step([Span(0, 2)], [5, 6])
    recorded = steps.steps.replays
    runner.between_replies()
    assert steps.steps.replays == recorded  # nothing changed
    weight = model.hf.get_parameter("model.norm.weight")
    weight.data = 2 * weight.data
    runner.between_replies()
    assert steps.steps.replays == []
    assert runner.step([Span(0, 2)], [5, 6]) is not None
    assert steps.steps.replays[0].state is State.WARM


class Counting:
    """A recorder that counts and can refuse."""

    def __init__(self, refuses: bool = False) -> None:
        self.recorded, self.replayed, self.refuses = 0, 0, refuses

    def record(self, work: Callable[[], Tensor | None]) -> tuple[Callable[[], None], Tensor | None]:
        self.recorded += 1
        if self.refuses:
            raise RuntimeError("an operation is not allowed here\nand more")
        out = torch.zeros(1)

        def replay() -> None:
            self.replayed += 1
            out.fill_(self.replayed)

        return replay, out


def test_a_step_runs_once_is_recorded_once_and_replayed() -> None:
    runs = []

    def work() -> Tensor:
        runs.append(len(runs))
        return torch.tensor([-1.0])

    recorder = Counting()
    replay = Replay(work, recorder)
    results = [replay() for _ in range(4)]
    assert [float(r) for r in results if r is not None] == [-1, 1, 2, 3]  # each the caller's own
    assert (len(runs), recorder.recorded, replay.state) == (1, 1, State.RECORDED)

    refusing = Replay(work, Counting(refuses=True))
    assert [float(r) for r in (refusing() for _ in range(3)) if r is not None] == [-1, -1, -1]
    assert (refusing.state, refusing.why_not) == (State.REFUSED, "an operation is not allowed here")
    assert Replay(work, None).state is State.REFUSED


def test_a_step_that_fails_is_not_taken_for_warm() -> None:
    def work() -> Tensor:
        raise ValueError("wrong")

    replay = Replay(work, Counting())
    for _ in range(2):
        with pytest.raises(ValueError, match="wrong"):
            replay()
    assert replay.state is State.COLD


def test_the_path_is_refused_in_one_sentence_without_a_device() -> None:
    model = attach(tiny_model("llama", num_hidden_layers=1), verify=False)
    memory, _ = memories(model)
    with pytest.raises(UsageError, match=r"^the gpu path is not possible here: the model is not on a CUDA device; use"):
        Runner(model, memory, "gpu")
    assert "GPU" not in Runner(model, memory, "eager").explanation


@pytest.mark.parametrize(
    ("family", "method", "words"),
    [
        ("llama", "dense", "grows"),
        ("llama", "lserve:ram=1MiB", "moves by units"),
        ("gpt2", "streaming-llm", "rotary"),
    ],
)
def test_memories_that_kernels_cannot_step(family: str, method: str, words: str) -> None:
    model = attach(tiny_model(family), verify=False)
    budget = None if method == "dense" else 128
    memory = Memory(model.geometry, parse(method).cascades(model.geometry, budget))
    assert words in str(memory_obstacle(memory))


def test_the_explanation_names_the_kernels() -> None:
    model = attach(tiny_model("llama", num_hidden_layers=1), verify=False)
    memory, _ = memories(model)
    runner = Runner(model, memory, "eager")
    runner._native = GpuSteps(model, memory)
    assert runner.now == "gpu"
    assert runner.explanation.startswith(
        "steps run on the GPU (kernels, not recorded because the device has no graphs)"
    )
    assert runner.step([Span(0, 3)], [5, 6, 7]) is not None
    assert memory.length() == 3


def test_archives_score_their_pages_with_the_kernel_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    key, query = torch.randn(9, 1, 8, 16), torch.randn(1, 2, 1, 16)
    bounds = Bounds(2)
    summary = bounds.summary(key, None, None)
    expected = bounds.score(summary, query)
    seen = []
    monkeypatch.setitem(retrieval.SCORERS, "cpu", lambda *given: seen.append(given) or page_scores(*given))
    assert (bounds.score(summary, query) - expected).abs().max() <= 1e-4
    assert len(seen) == 1


def test_kernels_get_through_the_compiler() -> None:
    """The interpreter accepts what the compiler does not (a variable that changes its shape in a loop)."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.kernels.gpu_compiles"]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    assert result.stdout.endswith("ok\n"), result.stderr[-2000:]
