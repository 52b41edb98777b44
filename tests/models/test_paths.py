"""Eager and compiled steps: the same numbers, and no step lost when a compiler gets in the way."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from penstock.errors import UnknownName, UsageError
from penstock.models import paths
from penstock.models.attach import Attached
from penstock.models.load import load
from penstock.session import Session
from penstock.testing import tiny_model


def session(path: str = "eager", memory: str = "streaming-llm", budget: int | None = 24, model: Any = None) -> Session:
    return Session(load(tiny_model("llama") if model is None else model), memory, budget, path=path, chunk=8)


def test_an_unknown_path_is_refused_with_the_list() -> None:
    with pytest.raises(UnknownName, match="auto, compiled, eager"):
        session("xyz")


def test_a_growing_memory_cannot_take_the_compiled_path_and_says_why() -> None:
    with pytest.raises(UsageError, match="grows"):
        session("compiled", "dense", None)


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
def test_compiled_steps_equal_eager_ones_round_the_ring_and_in_a_fork() -> None:
    model = tiny_model("llama", num_hidden_layers=2)
    eager, compiled = session("eager", model=model), session("compiled", model=model)
    for one in (eager, compiled):
        one.ingest(list(range(1, 31)))
    for token in range(2, 60):  # more than twice round a window of 20
        expected, got = eager.decode(token), compiled.decode(token)
        assert (expected - got).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert (eager.runner.now, compiled.runner.now) == ("eager", "compiled")
    fork = compiled.fork()
    assert fork.runner.now == "compiled"
    assert torch.equal(fork.decode(7), compiled.decode(7))
    assert fork.runner._shared is compiled.runner._shared  # one graph for both


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
def test_two_models_and_two_kinds_of_step_do_not_share_a_graph() -> None:
    """Graphs are filed under a code object; without guards, a second model once ran the graph of the first one."""
    for seed in (0, 1):
        model = tiny_model("llama", seed=seed, num_hidden_layers=1).to(torch.bfloat16)
        eager, compiled = session("eager", model=model), session("compiled", model=model)
        first = 64 if seed == 0 else 24  # eight chunks, the last five into a full memory; the second model only decodes
        for one in (eager, compiled):
            one.ingest(list(range(1, first + 1)))
        for token in range(2, 12):
            expected, got = eager.decode(token), compiled.decode(token)
        if seed == 0:
            for one in (eager, compiled):
                one.ingest(list(range(20, 36)))
        assert len(compiled.runner._active) == 2 - seed
        for a, b in ((expected, got), (eager.logits, compiled.logits)):
            assert a is not None
            assert b is not None
            assert (a - b).abs().max() <= 0.05 * max(1.0, float(a.abs().max()))


@pytest.mark.parametrize("count", [1, 8])
def test_a_step_that_breaks_beside_a_compiler_is_run_again_exactly(monkeypatch: Any, count: int) -> None:
    """A compiler in another thread wraps the calls of every module; an eager step failed in those wraps, half done."""
    model = tiny_model("llama")
    good, bad = session(model=model), session(model=model)
    for one in (good, bad):
        one.ingest(list(range(1, 61)))
    run, calls = Attached.run, []

    def breaks_once(self: Attached, *args: Any) -> Any:
        out = run(self, *args)  # every layer writes
        calls.append(1)
        if len(calls) == 1:
            raise NameError("module is not installed as a submodule")
        return out

    good.ingest(list(range(70, 70 + count)))
    monkeypatch.setattr(paths.compiled, "under_way", 1)
    monkeypatch.setattr(Attached, "run", breaks_once)
    bad.ingest(list(range(70, 70 + count)))
    monkeypatch.undo()
    assert len(calls) == 2
    assert torch.equal(good.logits, bad.logits)  # type: ignore[arg-type]
    assert torch.equal(good.decode(5), bad.decode(5))
    assert bad._memory.rows[0].marks == []


def test_auto_does_not_use_what_gains_nothing(monkeypatch: Any) -> None:
    monkeypatch.setattr(paths, "choose", lambda *given: (None, "it is left out here"))
    one = session("auto")

    def built(self: paths.Compiled, *args: Any) -> None:
        self.ready, self.speedup = True, 0.9

    monkeypatch.setattr(paths.Compiled, "start", built)
    one.ingest(list(range(1, 30)))
    for token in range(paths._AFTER + 8):
        one.decode(token % 50)
    one.runner.between_replies()
    assert one.runner.now == "eager"
    assert "gains nothing" in one.runner.status
