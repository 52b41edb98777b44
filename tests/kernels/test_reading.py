"""The native reading of some tokens equals the merge of partials, for whatever the parts of any method offer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.core import Kind, Phase, Span
from penstock.errors import BudgetError, CompositionError
from penstock.kernels import library as lib
from penstock.kernels.reading import Reading
from penstock.memory import Memory
from penstock.memory.attend import Partial
from penstock.memory.cascade import Cascade
from penstock.memory.flow import FlowPlan
from penstock.memory.layout import Layer
from penstock.memory.parts import Offer, Packed, Place, Query, Readable
from penstock.memory.positions import Rotary
from penstock.memory.reading import Reader
from penstock.memory.segments import Sinks
from penstock.methods import parse, registry
from penstock.models.attach import Attached
from penstock.models.probe import attach
from penstock.testing import tiny_model, tiny_tokens

pytestmark = pytest.mark.skipif(lib.library() is None, reason=lib.ABSENT)
METHODS = sorted(name for name in registry() if name not in ("dense", "window", "streaming-llm"))


@cache
def model(width: int = 32, kv_heads: int = 2, dtype: torch.dtype = torch.float32) -> Attached:
    """Four query heads."""
    return attach(tiny_model("llama", seed=3, head_dim=width, num_key_value_heads=kv_heads).to(dtype))


@pytest.fixture
def chosen() -> Iterator[int]:
    """The instruction set is put back afterwards."""
    before = lib.library().pk_chosen()
    yield before
    lib.library().pk_choose(before)


def memory_of(method: str, attached: Attached) -> Memory | None:
    """A memory of the smallest budget that the method takes here."""
    for budget in (64, 96, 192):
        try:
            return Memory(attached.geometry, parse(method).cascades(attached.geometry, budget))
        except BudgetError:
            continue
        except CompositionError:
            return None
    return None


STEPS = (
    (50, Phase.INGEST), (39, Phase.INGEST), *[(1, Phase.INGEST)] * 3, *[(1, Phase.ANSWER)] * 4,
    (33, Phase.INGEST), (7, Phase.ASK), (2, Phase.ASK), (2, Phase.ANSWER), (50, Phase.INGEST), (33, Phase.ASK),
)  # fmt: skip
VISION = (0, 8, 12)  # of the steps


class Counted(Reading):
    """It knows how many queries each of its calls of the library served."""

    def __init__(self) -> None:
        super().__init__()
        self.served: list[int] = []

    def _run(self, count: int, reader: Reader, query: Query) -> Partial:
        self.served.append(len(query))
        return super()._run(count, reader, query)


def compare(method: str, attached: Attached | None = None) -> tuple[float, int]:
    """The largest difference of outputs and of logsumexps over some steps, and how many codes were read as codes."""
    attached = attached or model()
    memory, worst, codes = memory_of(method, attached), 0.0, 0
    if memory is None or not any(isinstance(p, FlowPlan) for p in plans(memory)):
        pytest.skip("it is not kept unit by unit here")
    reading, asked = Counted(), []

    def both(reader: Reader, offers: Iterable[Offer], query: Query) -> tuple[Partial, Tensor | None]:
        nonlocal worst, codes
        offered = list(offers)
        codes += sum(isinstance(offer, Packed) for offer in offered)
        asked.append(len(query))
        expected, extra = reader.read(offered, query)
        got, more = reading.read(reader, offered, query)
        assert (extra is None) == (more is None)
        worst = max(worst, apart(got, expected))
        return expected, extra

    for i, (count, phase) in enumerate(STEPS):
        kinds = torch.full(
            (count,), Kind.VISION if i in VISION else Kind.ANSWER if phase is Phase.ANSWER else Kind.TEXT
        )
        with torch.no_grad(), memory.step([Span(0, count)], phase, kinds) as step:
            for plan in step.plans:
                if isinstance(plan, FlowPlan):
                    plan.read = both
            attached.run(tiny_tokens(count, i), step, None, "none")
    assert reading.served == asked
    assert max(asked) > 1
    return worst, codes


def apart(got: Partial, expected: Partial) -> float:
    """The largest difference of two partials, to their size."""
    pairs = ((got.out, expected.out), (got.lse, expected.lse))
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp_min(1.0)) for a, b in pairs)


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


@pytest.mark.parametrize("method", METHODS)
def test_in_bfloat16_too(method: str) -> None:
    """Where PyTorch rounds turned keys, turned queries and weights, nothing is rounded here but the result."""
    assert compare(method, model(dtype=torch.bfloat16))[0] <= 0.03


@pytest.mark.parametrize(("width", "kv_heads"), [(48, 4), (64, 1), (32, 4), (48, 2)])
@pytest.mark.parametrize("method", ["kv4", "heavy-hitters", "infllm", "resv", "duo-attention"])
def test_any_width_and_group(method: str, width: int, kv_heads: int) -> None:
    assert compare(method, model(width, kv_heads))[0] <= 1e-5


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three threads, whatever there is to read."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr("penstock.kernels.reading._PER_THREAD", 1)


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("method", ["infllm", "kv4", "streaming-vlm"])
def test_threads_share_the_slots(method: str, kv_heads: int) -> None:
    assert compare(method, model(kv_heads=kv_heads))[0] <= 1e-5


def offers_of(place: Place, count: int, seed: int = 0) -> list[Readable]:
    """The tail of `count` queries, a long window, entries for some queries, a bias, masks of all shapes."""
    generator = torch.Generator().manual_seed(seed)
    heads, width = place.heads, place.layer.key_width

    def readable(entries: int, first: int, at: Tensor, **more: Any) -> Readable:
        key, value = (torch.randn(heads, entries, width, generator=generator).to(place.dtype) for _ in "kv")
        position = (first + torch.arange(entries)).expand(heads, -1)
        kind = torch.randint(0, 2, (heads, entries), generator=generator).to(torch.uint8)
        return Readable(key, value, position, at, kind=kind, **more)

    def mask(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) < 0.3

    at = torch.arange(900, 900 + count)
    far = torch.full_like(at, 700)
    spread = torch.randint(0, 2000, (heads, 37), generator=generator)
    half = count // 2
    return [
        readable(count + 5, 895, at, causal=True),
        readable(300, 500, at),
        readable(4, 0, at.clamp(max=900 + half), turned=True),
        replace(readable(37, 0, at), position=spread),
        readable(19, 100, far, bias=torch.randn(heads, 19, generator=generator)),
        readable(150, 200, far, mask=mask(count, 150)),
        readable(33, 0, far, mask=mask(heads, count, 33), bias=torch.randn(heads, 33, generator=generator)),
        readable(33, 0, far, mask=mask(heads * place.group, count, 33)),
        readable(9, 0, far, mask=mask(heads * place.group, count, 9), bias=torch.randn(heads, 9, generator=generator)),
        readable(21, 300, at, queries=(half, half + 1)),
        readable(21, 300, at, queries=(half, count), mask=mask(count - half, 21)),
        readable(0, 0, at),
    ]


def synthetic(
    count: int, kv_heads: int, group: int, width: int, dtype: torch.dtype, blind: bool
) -> tuple[Reader, Query]:
    """A reader and queries of one layer, without a model."""
    generator = torch.Generator().manual_seed(1)
    encoding = Rotary(10000.0 ** -(torch.arange(0, width // 2, dtype=torch.float64) / (width // 2)), width == 48)
    layer = Layer(0, kv_heads * group, kv_heads, width, width, encoding)
    place = Place(layer, kv_heads, group, dtype, torch.device("cpu"), "stream", 64, 700, False, "0.0", lambda: None)
    pairs = ((int(Kind.VISION), int(Kind.TEXT)),) if blind else ()
    raw = torch.randn(count, kv_heads * group, width, generator=generator).to(dtype).transpose(0, 1)
    at, kind = torch.arange(900, 900 + count), torch.arange(count).remainder(2).to(torch.uint8)
    cascade = Cascade((Sinks(4),), "stream", 64, blind=pairs)
    return Reader(cascade, place, 0.2, None), Query(raw, at, at, kind, Phase.ASK, place)


@pytest.mark.parametrize("count", [1, 2, 7, 33, 50, 64])
@pytest.mark.parametrize(("kv_heads", "group", "width"), [(3, 1, 32), (2, 3, 48), (1, 9, 64)])
def test_all_that_can_be_offered(count: int, kv_heads: int, group: int, width: int, chosen: int) -> None:
    for which in range(len(lib.SETS)):
        if not lib.library().pk_choose(which):
            continue
        for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):
            for blind in (False, True):
                reader, query = synthetic(count, kv_heads, group, width, dtype, blind)
                offers = offers_of(reader.place, count)
                nobody = replace(offers[1], queries=(count, None))
                got = Reading().read(reader, [*offers, nobody], query)[0]
                assert apart(got, reader.read(offers, query)[0]) <= limit


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(("kv_heads", "group"), [(1, 1), (2, 3), (5, 2)])
def test_threads_share_heads_and_slots(kv_heads: int, group: int) -> None:
    reader, query = synthetic(40, kv_heads, group, 32, torch.float32, True)
    offers = offers_of(reader.place, 40)
    for some in (offers, offers[:1], offers[4:7]):  # few slots: a thread may see nothing of any head
        assert apart(Reading().read(reader, some, query)[0], reader.read(some, query)[0]) <= 1e-5


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("count", [1, 8])
def test_queries_that_see_nothing_weigh_nothing(count: int) -> None:
    reader, query = synthetic(count, 2, 2, 32, torch.float32, False)
    offer = offers_of(reader.place, count)[1]
    mask = torch.ones(count, offer.key.shape[1], dtype=torch.bool)
    mask[0] = False
    got = Reading().read(reader, [replace(offer, mask=mask)], query)[0]
    expected = reader.read([offer], query)[0]
    assert bool(got.out.isfinite().all())
    assert float(got.lse[:, :, 0].max()) < -1e29
    assert torch.allclose(got.lse[:, :, 1:], expected.lse[:, :, 1:], atol=1e-5)
    assert torch.allclose(got.out[:, :, 1:], expected.out[:, :, 1:], atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("causal", [False, True])
def test_a_nan_is_not_taken_for_something_hidden(count: int, causal: bool) -> None:
    """Several tokens gave finite numbers where a key was NaN: a fault looked like an answer, and one token told it."""
    reader, query = synthetic(count, 2, 2, 32, torch.float32, False)
    [plain, *_] = offers_of(query.place, count)
    key = plain.key.clone()
    key[0, 0, 0] = float("nan")
    offer = replace(plain, key=key, mask=None, bias=None, kind=None, queries=(0, None), causal=causal)
    got, _ = Reading().read(reader, [offer], query)
    assert got.out[0, :2].isnan().all()
    assert got.lse[0, :2].isnan().all()
    assert got.out[0, 2:].isfinite().all()


def test_masks_of_query_heads_meet_kinds_that_are_blind() -> None:
    """Such a mask has more heads than the kinds of keys have: the two could not be joined, nor a bias hidden by it."""
    reader, query = synthetic(3, 2, 3, 32, torch.float32, True)
    offer = next(
        o for o in offers_of(reader.place, 3) if o.mask is not None and len(o.mask) == 6 and o.bias is not None
    )
    mask = reader.mask(offer, query, torch.float32)
    assert mask is not None
    assert offer.mask is not None
    assert offer.bias is not None
    assert offer.kind is not None
    for head in range(6):
        blind = (query.kind[:, None] == int(Kind.VISION)) & (offer.kind[head // 3] == int(Kind.TEXT))
        expected = offer.bias[head // 3].expand(3, -1).masked_fill(~offer.mask[head] | blind, -1e30)
        assert torch.equal(mask[head], expected)


def test_a_causal_tail_is_a_mask() -> None:
    """What the merge hides of a tail is what a mask would hide, number for number."""
    reader, query = synthetic(7, 2, 2, 32, torch.float32, True)
    tail = offers_of(reader.place, 7)[0]
    mask = torch.arange(12) <= torch.arange(5, 12)[:, None]
    a, b = (reader.read([offer], query)[0] for offer in (tail, replace(tail, causal=False, mask=mask)))
    assert torch.equal(a.out, b.out)
    assert torch.equal(a.lse, b.lse)
