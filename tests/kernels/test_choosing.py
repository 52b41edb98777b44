"""The native choice among blocks gives the shares of attention that PyTorch gives, wherever the blocks lie."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.core import Phase
from penstock.kernels import library as lib
from penstock.kernels.choosing import Choosing
from penstock.kernels.reading import Reading
from penstock.memory import Cascade, Memory, Sinks, Window
from penstock.memory.archive import Archive
from penstock.memory.archive_blocks import Archived
from penstock.memory.archive_choice import weighed
from penstock.memory.block_index import BlockIndex
from penstock.memory.retrieval import Bounds, Channels, Mean, Representatives, Selector
from penstock.memory.tiers import BlockStore, Tiers
from penstock.models.load import load
from penstock.session import Session
from penstock.testing import tiny_model
from tests.memory.stack import Stack, tokens

pytestmark = pytest.mark.skipif(lib.library() is None, reason=lib.ABSENT)
ROOMY = Tiers(8 << 20)
SELECTORS = (Mean(), Representatives(2), Representatives(8), Bounds(1), Bounds(3), Bounds(8), Channels(4), Channels(12))


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most blocks of a short stream are in the index."""
    monkeypatch.setattr("penstock.memory.archive_sizes._RUN", 160)


@pytest.fixture
def chosen() -> Iterator[int]:
    """The instruction set is put back afterwards."""
    before = lib.library().pk_chosen()
    yield before
    lib.library().pk_choose(before)


@cache
def archived(
    select: Selector, *, width: int = 32, dtype: torch.dtype = torch.float32, block: int = 5, apart: bool = False,
    tiers: Tiers = ROOMY, length: int = 700,
) -> Archived:  # fmt: skip
    """An archive of two key-value heads, each read by three."""
    stack = Stack(windows=(None,), width=width, heads=6, dtype=dtype)
    plan = Cascade((Sinks(2), Window(6), Archive(block, 3, select, tiers, by_head=apart)), "stream", 4)
    memory = stack.memory(plan)
    for start in range(0, length, 50):
        stack.feed(memory, tokens(50, seed=start), 50)
    [lane] = memory.groups[0].lanes[0][0]
    blocks: Archived = lane.states[-1]["blocks"]
    blocks.__dict__["kept"] = memory  # as long as its pool is needed
    return blocks


def asked(blocks: Archived, count: int, seed: int = 0) -> Tensor:
    """Scaled and projected queries [H, g, count, D']."""
    place = blocks.layout.place
    query = torch.randn(2, place.group, count, place.layer.key_width, generator=torch.Generator().manual_seed(seed))
    return blocks.selector.project(query * 0.7, blocks.table)


def agree(blocks: Archived, count: int = 1, most: int = 40) -> tuple[Tensor, Tensor]:
    """Both ways give the same blocks, and the same shares up to rounding; gives them."""
    query = asked(blocks, count)
    choosing = Choosing()
    assert choosing.knows(blocks.selector, blocks.layout)
    which, expected = weighed(blocks, query, blocks.oldest, most, 4, None)
    same, got = weighed(blocks, query, blocks.oldest, most, 4, choosing)
    assert torch.equal(which, same)
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-7)
    return which, got


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("select", SELECTORS, ids=str)
def test_every_summary(select: Selector, dtype: torch.dtype, apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of blocks in the open run, and of blocks of the index, which are summed up where they lie."""
    blocks = archived(select, dtype=dtype, apart=apart)
    assert blocks.oldest < blocks.base < len(blocks)
    query = asked(blocks, 1)
    expected = weighed(blocks, query, blocks.oldest, 40, 4, None)
    monkeypatch.setattr("penstock.memory.archive_choice._looked_at", None)  # nothing is copied from here on
    got = weighed(blocks, query, blocks.oldest, 40, 4, Choosing())
    assert torch.equal(got[0], expected[0])
    assert int(got[0].min()) < blocks.base <= int(got[0].max())
    assert torch.allclose(got[1], expected[1], rtol=1e-4, atol=1e-7)
    assert torch.allclose(got[1].sum(-1), torch.full_like(got[1].sum(-1), 3.0 if apart else 6.0))


@pytest.mark.parametrize("which", range(len(lib.SETS)), ids=lib.SETS)
@pytest.mark.parametrize("width", [8, 32, 48])
@pytest.mark.parametrize("select", [Mean(), Bounds(2), Channels(8)], ids=str)
def test_every_instruction_set(select: Selector, width: int, which: int, chosen: int) -> None:
    """Widths that fill vectors and those that do not; as many queries as are compared at once, more and fewer."""
    if not lib.library().pk_choose(which):
        pytest.skip(f"no {lib.SETS[which]} here")
    blocks = archived(select, width=width)
    for count in (1, 2, 3, 7):
        agree(blocks, count)


@pytest.mark.parametrize("which", range(len(lib.SETS)), ids=lib.SETS)
@pytest.mark.parametrize("width", [4, 32, 48])
def test_an_index_is_searched_alike(width: int, which: int, chosen: int) -> None:
    """The same blocks, in runs of several lengths, some of them too old, with few and many queries and lists."""
    if not lib.library().pk_choose(which):
        pytest.skip(f"no {lib.SETS[which]} here")
    generator, native = torch.Generator().manual_seed(width), Choosing()
    points = torch.randn(2000, 3, 4, width, generator=generator)
    index = BlockIndex.trained(points[:128])
    for first in range(0, len(points), 80):
        index = index.with_run(first, index.codes(points[first : first + 80]), 320)
    assert len({len(run) for run in index.runs}) > 1
    for count, near, most, oldest in itertools.product((1, 2, 5, 40), (1, 2, 4), (16, 200, 512), (0, 333, 1400)):
        query = torch.randn(3, 2, count, width, generator=generator) * width**-0.5 * 3
        expected = index.search(query, oldest, most, near)
        got = index.search(query, oldest, most, near, native)
        assert torch.equal(got, expected), (count, near, most, oldest)


def test_a_search_is_limited_like_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of lists and of the blocks in them; what they do not give, the newest blocks do."""
    native, points = Choosing(), torch.randn(900, 2, 4, 16, generator=torch.Generator().manual_seed(0))
    index = BlockIndex.trained(points[:128])
    for first in range(0, 900, 90):
        index = index.with_run(first, index.codes(points[first : first + 90]), 90)
    for name, limit in (("_LISTS", 3), ("_LISTED", 40), ("_LISTED", 1)):
        monkeypatch.setattr(f"penstock.memory.block_index.{name}", limit)
        for seed in range(5):
            query = torch.randn(2, 3, 1, 16, generator=torch.Generator().manual_seed(seed))
            assert torch.equal(index.search(query, 200, 400, 4, native), index.search(query, 200, 400, 4))


def test_threads_share_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.kernels.choosing._PER_THREAD", 1)
    blocks = archived(Bounds(2))
    for threads in (2, 3, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        agree(blocks, 3)


def test_blocks_that_are_lost_are_left_out() -> None:
    """Then the others are copied, as for PyTorch."""
    blocks = archived(Mean(), length=701)  # of this test alone
    assert blocks.store is not None
    lost = blocks.oldest + 3
    blocks.store.shelf.drop([blocks.store.table.get(lost)], "lost", "a test")
    which, _ = agree(blocks, 2, most=len(blocks))
    assert lost not in which.tolist()


def test_blocks_on_the_disk_are_brought_to_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are chosen among without another copy."""
    blocks = archived(Representatives(2), tiers=Tiers(600_000, 8 << 20, str(tmp_path)), length=2500)
    assert blocks.store is not None
    shelf, table = blocks.store.shelf, blocks.store.table
    below = [i for i in range(blocks.oldest, blocks.base) if shelf.is_below(table.get(i))]
    assert len(below) > 20
    expected = weighed(blocks, asked(blocks, 1), blocks.oldest, 40, 4, None)
    monkeypatch.setattr(BlockStore, "fetch_bytes", None)
    got = weighed(blocks, asked(blocks, 1), blocks.oldest, 40, 4, Choosing())
    assert torch.equal(got[0], expected[0])
    assert torch.allclose(got[1], expected[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("path", "used"), [("native", True), ("eager", False)])
def test_native_steps_search_choose_and_read_so(path: str, used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only could they: a session on the native path does, and the specification does not."""
    called = set[str]()
    for owner, name in ((Choosing, "search"), (Choosing, "shares"), (Reading, "_stored"), (Reading, "_run")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, name=name, real=real: (called.add(name), real(*given))[1])
    session = Session(load(tiny_model("llama", seed=3, head_dim=32)), "rekv", 96, path=path, chunk=16)
    session.ingest([7 * i % 128 for i in range(500)])
    assert called == ({"_run"} if used else set())
    session.ingest([3, 5, 8], Phase.ASK)
    session.ingest([9], Phase.ANSWER)
    assert called == ({"search", "shares", "_stored", "_run"} if used else set())


@pytest.mark.parametrize("positions", ["clamped", "contiguous", "stream"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_token_reads_blocks_without_a_copy(apart: bool, positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where positions are known beforehand: numbers from the stream are in the blocks, which are copied for them."""
    stack = Stack(windows=(None, None), width=32)
    plan = Cascade((Sinks(2), Window(6), Archive(5, 3, Mean(), ROOMY, by_head=apart)), positions, 4)
    memory, other = stack.memory(plan), stack.memory(plan)
    stack.feed(memory, tokens(400), 50)
    memory.copy_row(0, other, 0)
    for each in (memory, other):
        monkeypatch.setattr(each, "step", partial(Memory.step, each, phase=Phase.ASK))
    expected = stack.feed(memory, tokens(9, seed=1), 1)
    group, reading, copied = type(memory.groups[0]), Reading(), list[int]()
    made, fetch = group.plan, Archived.fetch
    monkeypatch.setattr(group, "plan", lambda *given: replace(made(*given), chooser=Choosing(), read=reading.read))
    monkeypatch.setattr(Archived, "fetch", lambda self, ids: (copied.append(len(ids)), fetch(self, ids))[1])
    got = stack.feed(other, tokens(9, seed=1), 1)
    assert torch.allclose(got, expected, atol=1e-5)
    units = 2 * 2  # of two layers, for the unit after
    assert len(copied) == units + (18 if positions == "stream" else 0)


@pytest.mark.parametrize(("select", "why"), [(Channels(6), "width"), (Bounds(80), "vectors")], ids=str)
def test_what_it_does_not_know_is_left_to_pytorch(select: Selector, why: str) -> None:
    blocks = archived(select, block=80 if why == "vectors" else 5, length=1200)
    assert not Choosing().knows(select, blocks.layout)
    which, got = weighed(blocks, asked(blocks, 1), blocks.oldest, 40, 4, Choosing())
    same, expected = weighed(blocks, asked(blocks, 1), blocks.oldest, 40, 4, None)
    assert torch.equal(which, same)
    assert torch.equal(got, expected)


def test_half_precision_has_no_native_choice() -> None:
    assert not Choosing().knows(Mean(), archived(Mean(), dtype=torch.float16).layout)


def test_a_choice_is_asked_for_while_reading_and_for_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once per unit, and once per query."""
    stack, native = Stack(windows=(None,), width=32), Choosing()
    memory = stack.memory(Cascade((Sinks(2), Window(6), Archive(4, 3, Mean())), "clamped", 4))
    group, seen = type(memory.groups[0]), list[int]()

    class Counting(Choosing):
        def shares(self, *given: Any) -> Tensor:
            seen.append(given[3].shape[2])
            return native.shares(*given)

    plan, counting = group.plan, Counting()
    monkeypatch.setattr(group, "plan", lambda *given, **more: replace(plan(*given, **more), chooser=counting))
    stack.feed(memory, tokens(80), 8)
    assert len(seen) > 10
    assert set(seen) == {1}
    for phase in (Phase.ASK, Phase.ANSWER):
        seen.clear()
        monkeypatch.setattr(memory, "step", partial(Memory.step, memory, phase=phase))
        stack.feed(memory, tokens(2), 2)
        assert seen[0] == 2
