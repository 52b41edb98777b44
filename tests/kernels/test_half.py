"""Products of bfloat16 in hardware, emulated: the same code over plain C++ in place of a few instructions.

The emulated sets are compiled for these tests (a compiler is needed, no processor of any kind) into a library of the
kind that the package loads, and into a program that compares products with sums in float64.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penstock.kernels import library as lib
from penstock.kernels.step import Native, weights_of
from penstock.memory import Memory
from penstock.methods import parse
from penstock.models.load import load
from penstock.models.probe import attach
from penstock.session import Session
from penstock.testing import tiny_model, tiny_tokens
from tests.kernels.test_native import by_threads, largest_difference, native_step

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "penstock" / "kernels" / "cpu"
COMPILER = shutil.which("g++") or shutil.which("clang++")
FLAGS = ["-std=c++17", "-O0", "-fPIC", "-pthread", "-Wno-psabi", f"-I{SOURCES}"]
FLAGS += ["-DPK_EMULATED", "-DPK_HAS_AVX512_BF16", "-DPK_HAS_AMX"]
EMULATED = ("avx512_bf16", "amx")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ or clang++")


def compiled(*command: object) -> None:
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder of the emulated library and of the program; made again when a source has changed."""
    folder = ROOT / "build" / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    program = Path(__file__).with_name("half.cpp")
    newest = max(path.stat().st_mtime for path in [*SOURCES.iterdir(), program, Path(__file__)])
    with (folder / "lock").open("w") as lock:  # of processes that test side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "done"
        if not done.exists() or done.stat().st_mtime < newest:
            for name in ("portable", *EMULATED, "pool", "memory", "search", "model", "sets"):
                compiled(COMPILER, *FLAGS, "-c", SOURCES / f"{name}.cpp", "-o", folder / f"{name}.o")
            sets = [folder / f"{name}.o" for name in (*EMULATED, "pool", "sets")]
            compiled(COMPILER, *FLAGS, program, *sets, "-o", folder / "half")
            rest = [folder / f"{name}.o" for name in ("portable", "memory", "search", "model")]
            compiled(COMPILER, "-shared", "-pthread", "-o", folder / "library.so", *sets, *rest)
            done.touch()
    return folder


@pytest.fixture(params=EMULATED)
def emulated(request: Any, built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package runs over the emulated library, and that over one of its sets."""
    found = lib.opened(built / "library.so")
    monkeypatch.setattr(lib, "library", lambda: found)
    assert found.pk_choose(lib.SETS.index(request.param))
    return found


def test_products_are_sums_in_float64_within_rounding(built: Path) -> None:
    done = subprocess.run([built / "half"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout
    for name in EMULATED:
        assert f"{name}: 315 cases" in done.stdout


def test_the_best_set_is_chosen_and_told(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = lib.opened(built / "library.so")
    monkeypatch.setattr(lib, "library", lambda: found)
    found.pk_choose(len(lib.SETS) - 1)
    assert lib.describe()["sets"] == ["portable", *EMULATED]
    assert lib.describe()["uses"] == "amx"
    assert not found.pk_choose(lib.SETS.index("avx512"))  # was not built
    assert not found.pk_choose(len(lib.SETS))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_emulated_sets_equal_the_specification(family: str, emulated: Any) -> None:
    model = attach(tiny_model(family, seed=3).to(torch.bfloat16))
    assert largest_difference(model, "streaming-llm") <= 0.05


def test_every_number_of_tokens_gives_what_one_by_one_gives(emulated: Any) -> None:
    model = attach(tiny_model("llama", seed=8).to(torch.bfloat16))
    memory = Memory(model.geometry, parse("streaming-llm").cascades(model.geometry, 48), 1)
    native = Native(weights_of(model.hf, model.geometry), memory, model.vocabulary)
    tokens = tiny_tokens(44, 3)
    alone = torch.cat([native_step(native, {0: token[None]}) for token in tokens]).float()
    for count in range(2, 45):
        memory.reset(0)
        together = native_step(native, {0: tokens[:count]}).float()
        assert (together - alone[:count]).abs().max() <= 0.05 * float(alone.abs().max()), f"{count} tokens"


def test_threads_change_no_logit(emulated: Any) -> None:
    """Each output is summed by one thread, whichever it is."""
    model = attach(tiny_model("llama", seed=6).to(torch.bfloat16))
    first, *others = by_threads(model, [{0: tiny_tokens(count, count)} for count in (30, 9, 17)])
    assert all(torch.equal(out, first) for out in others)


def test_stretches_of_other_memories_multiply_so_too(emulated: Any) -> None:
    model = load(tiny_model("qwen3", seed=3).to(torch.bfloat16))
    outs = {}
    for path in ("native", "eager"):
        session = Session(model, "infllm", 96, path=path, chunk=16)
        session.ingest([7 * i % 128 for i in range(131)])
        outs[path] = torch.stack([session.decode(token) for token in range(5, 25)]).float()
    assert (outs["native"] - outs["eager"]).abs().max() <= 0.05 * outs["eager"].abs().max()


def test_float32_models_and_few_rows_are_multiplied_as_ever(emulated: Any) -> None:
    assert largest_difference(attach(tiny_model("qwen3", seed=3)), "streaming-llm") <= 1e-5
    model = attach(tiny_model("llama", seed=8).to(torch.bfloat16))
    logits = {}
    for which in ("portable", "here"):
        if which == "portable":
            before = emulated.pk_chosen()
            emulated.pk_choose(0)
        else:
            emulated.pk_choose(before)
        memory = Memory(model.geometry, parse("dense").cascades(model.geometry, None), 1)
        native = Native(weights_of(model.hf, model.geometry), memory, model.vocabulary)
        logits[which] = torch.cat([native_step(native, {0: tiny_tokens(count, count)}) for count in (1, 7, 3)]).float()
    np.testing.assert_allclose(logits["here"], logits["portable"], atol=1e-2 * float(logits["portable"].abs().max()))


def test_eight_rows_are_multiplied_by_these_products_and_fewer_are_not(emulated: Any) -> None:
    """Rounded activations leave another result than float32 ones, where they are used."""
    model = attach(tiny_model("llama", seed=8).to(torch.bfloat16))
    memory = Memory(model.geometry, parse("dense").cascades(model.geometry, None), 1)
    chosen, found = emulated.pk_chosen(), {}
    for which in (0, chosen):
        emulated.pk_choose(which)
        for count in (7, 8):
            memory.reset(0)
            native = Native(weights_of(model.hf, model.geometry), memory, model.vocabulary)
            found[which, count] = native_step(native, {0: tiny_tokens(count, 1)}).float()
    few, many = ((found[chosen, count] - found[0, count]).abs().max() for count in (7, 8))
    assert many > 4 * few
