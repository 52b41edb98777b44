"""One token's native reading equals the merge of partials, for whatever the parts of any method offer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import pytest
import torch
from torch import Tensor

from penstock.core import Kind, Phase, Span
from penstock.errors import BudgetError, CompositionError
from penstock.kernels import library as lib
from penstock.kernels.reading import Reading
from penstock.memory import Memory
from penstock.memory.attend import Partial
from penstock.memory.flow import FlowPlan
from penstock.memory.parts import Offer, Packed, Query
from penstock.memory.reading import Reader
from penstock.methods import parse, registry
from penstock.models.attach import Attached
from penstock.models.probe import attach
from penstock.testing import tiny_model, tiny_tokens

pytestmark = pytest.mark.skipif(lib.library() is None, reason=lib.ABSENT)
METHODS = sorted(name for name in registry() if name not in ("dense", "window", "streaming-llm"))


@cache
def model() -> Attached:
    return attach(tiny_model("llama", seed=3, head_dim=32))


@pytest.fixture
def chosen() -> Iterator[int]:
    """The instruction set is put back afterwards."""
    before = lib.library().pk_chosen()
    yield before
    lib.library().pk_choose(before)


def memory_of(method: str) -> Memory | None:
    """A memory of the smallest budget that the method takes here."""
    for budget in (64, 96, 192):
        try:
            return Memory(model().geometry, parse(method).cascades(model().geometry, budget))
        except BudgetError:
            continue
        except CompositionError:
            return None
    return None


def compare(method: str) -> tuple[float, int]:
    """The largest difference of outputs and of logsumexps over some tokens, and how many codes were read as codes."""
    memory, worst, codes = memory_of(method), 0.0, 0
    if memory is None or not any(isinstance(p, FlowPlan) for p in plans(memory)):
        pytest.skip("it is not kept unit by unit here")
    reading = Reading()

    def both(reader: Reader, offers: Iterable[Offer], query: Query) -> tuple[Partial, Tensor | None]:
        nonlocal worst, codes
        offered = list(offers)
        codes += sum(isinstance(offer, Packed) for offer in offered)
        expected, extra = reader.read(offered, query)
        got, more = reading.read(reader, offered, query)
        assert (extra is None) == (more is None)
        for a, b in ((got.out, expected.out), (got.lse, expected.lse)):
            worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp_min(1.0)))
        return expected, extra

    steps = [(50, Phase.INGEST), (39, Phase.INGEST), *[(1, Phase.INGEST)] * 3, *[(1, Phase.ANSWER)] * 4]
    for i, (count, phase) in enumerate(steps):
        kinds = torch.full((count,), Kind.VISION if i == 0 else Kind.ANSWER if phase is Phase.ANSWER else Kind.TEXT)
        with torch.no_grad(), memory.step([Span(0, count)], phase, kinds) as step:
            for plan in step.plans:
                if isinstance(plan, FlowPlan):
                    plan.read = both
            model().run(tiny_tokens(count, i), step, None, "none")
    return worst, codes


def plans(memory: Memory) -> list[object]:
    """The plans of a step that is not run."""
    return [memory._plan(group, [Span(0, 1)], [0], Phase.INGEST, None) for group in memory.groups]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_read_as_its_merge_says(method: str) -> None:
    assert compare(method)[0] <= 1e-5


@pytest.mark.parametrize("which", range(len(lib.SETS)), ids=lib.SETS)
@pytest.mark.parametrize("method", ["kv8", "kv4", "infllm"])
def test_every_instruction_set_reads_codes_and_blocks(method: str, which: int, chosen: int) -> None:
    if not lib.library().pk_choose(which):
        pytest.skip(f"no {lib.SETS[which]} here")
    worst, codes = compare(method)
    assert worst <= 1e-5
    assert (codes > 0) == method.startswith("kv")


def test_threads_share_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr("penstock.kernels.reading._PER_THREAD", 1)
    assert compare("infllm")[0] <= 1e-5
    assert compare("kv4")[0] <= 1e-5
