"""The archive: what a query reads, what stays where, copies, rollbacks, limits, damage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from penstock.core import Phase
from penstock.errors import BudgetError, CompositionError
from penstock.memory import Cascade, Everything, Memory, Sinks, Window
from penstock.memory.archive import Archive
from penstock.memory.archive_blocks import Archived
from penstock.memory.archive_layout import Rows
from penstock.memory.retrieval import Bounds, Channels, Mean, Representatives, Selector
from penstock.memory.tiers import BlockStore, Tiers

from .stack import Stack, difference, tokens

SELECTORS = (Mean(), Representatives(2), Bounds(2), Channels(4))
SMALL = Tiers(400_000)


def cascade(archive: Archive, positions: str = "stream") -> Cascade:
    return Cascade((Sinks(2), Window(6), archive), positions, 4)


def archived(memory: Memory, layer: int = 0, row: int = 0) -> Archived:
    [lane] = memory.groups[0].lanes[row][layer]
    blocks: Archived = lane.states[-1]["blocks"]
    return blocks


@contextmanager
def asking(memory: Memory) -> Iterator[None]:
    """Steps inside are questions."""
    memory.step = partial(Memory.step, memory, phase=Phase.ASK)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del memory.step  # type: ignore[method-assign]


def ask(stack: Stack, memory: Memory, stream: Sequence[int], row: int = 0) -> Tensor:
    with asking(memory):
        return stack.feed(memory, stream, row=row)


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("select", SELECTORS)
def test_with_slots_for_all_it_is_dense(select: Selector, by_head: bool) -> None:
    """Nothing is lost, whatever the summaries, while reading and when asked (card infllm, check b)."""
    stack, stream = Stack(), tokens(90)
    expected = stack.expected(stream, Cascade((Everything(),)))
    memory = stack.memory(cascade(Archive(4, 24, select, by_head=by_head)))
    got = torch.cat([stack.feed(memory, stream[:75], 5), ask(stack, memory, stream[75:])], dim=1)
    assert difference(got, expected) < 1e-5


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("positions", ["stream", "clamped"])
def test_a_question_reads_the_blocks_with_the_best_mean(by_head: bool, positions: str) -> None:
    """By hand: sinks, window, two blocks of the archive, what is pending, the unit so far.

    Blocks are compared with the query where it reads them: at the cap if positions are clamped, else without positions.
    """
    stack, stream = Stack(windows=(None,)), tokens(110, seed=3)
    plan = cascade(Archive(4, 2, Mean(), ingest="none", by_head=by_head), positions)
    memory, cap = stack.memory(plan), (plan.entries or 0) - 1
    stack.feed(memory, stream[:-1], 7)
    got = ask(stack, memory, stream[-1:])[0, 0]  # [Hq, D]
    ids, now = torch.tensor(stream), len(stream) - 1
    whole = now // 4 * 4
    key, value = stack.keys[0, ids].double(), stack.values[0, ids].double()  # [T, H, D]
    query = stack.queries[0, ids[-1]].double().view(2, 2, -1)  # [H, g, D]
    blocks = [range(a, a + 4) for a in range(2, whole - 6 - 3, 4)]
    pending = range(blocks[-1].stop, whole - 6)
    means = torch.stack([key[list(b)].mean(0) for b in blocks])  # [n, H, D]
    rotary = stack.geometry.layers[0].encoding
    asking = query
    if positions == "clamped":
        asking = rotary.rotate(query, rotary.angles(torch.tensor([cap, cap])))
    scores = (torch.einsum("nhd,hgd->hgn", means, asking) * stack.scale).softmax(-1).sum(1)
    for h in range(2):
        best = (scores[h] if by_head else scores.sum(0)).topk(2).indices.tolist()
        read = [0, 1, *(i for b in best for i in blocks[b]), *pending, *range(whole - 6, now + 1)]
        distance = now - torch.tensor(read)
        if positions == "clamped":
            far = 2 + 8 + len(pending)
            distance[:2] = cap - torch.arange(2)
            distance[2:far] = cap
        turned = rotary.rotate(key[read, h][None], rotary.angles(-distance))[0]
        for g in range(2):
            weights = torch.softmax(turned @ query[h, g] * stack.scale, 0)
            assert torch.allclose(weights @ value[read, h], got[2 * h + g].double(), atol=1e-5)


def test_a_quiet_head_that_knows_beats_a_loud_head_that_does_not() -> None:
    """A loud head likes every other block alike, a quiet one knows the block: the sum of scores would miss it."""
    stack = Stack("none", windows=(None,), heads=2, kv_heads=1)
    stack.keys[:, :3] = 0
    stack.keys[:, 1, :, 0] = 10.0  # what the loud head likes
    stack.keys[:, 2, :, 1] = 5.0  # what the quiet head asks for
    stream = [0, 0, *([1] * 4 + [0] * 4) * 20, *[0] * 6]
    stream[2 + 4 * 13 : 2 + 4 * 14] = [2] * 4
    memory = stack.memory(cascade(Archive(4, 2, Mean())))
    stack.feed(memory, stream, 8)
    query = torch.zeros(1, 2, 1, 8)
    query[0, 0, 0, 0], query[0, 1, 0, 1] = 10.0, 5.0
    blocks = archived(memory)
    scores = Mean().score(torch.cat(blocks.summary.parts), query).sum((0, 1, 2))
    assert 13 not in scores.topk(2).indices.tolist()
    assert 13 in blocks.choose(query, 2)[0].tolist()
    assert blocks.choose(query, 1).tolist() == [[13]]


@pytest.mark.parametrize("by_head", [False, True])
def test_an_oracle_brings_the_wanted_blocks(by_head: bool) -> None:
    """In place of the oldest others, in stream order, as many as were chosen."""
    stack = Stack(windows=(None,))
    memory = stack.memory(cascade(Archive(4, 3, Mean(), by_head=by_head)))
    stack.feed(memory, tokens(101), 8)
    blocks = archived(memory)  # block n holds 2 + 4 n and the three after it
    chosen = torch.tensor([[3, 9, 12], [5, 6, 7]])
    if by_head:
        chosen = torch.stack((chosen, chosen.flip(0)), dim=1)  # [C, H, k]

    def including(first: int, stop: int) -> list[list[int]]:
        found = blocks.including(chosen, range(first, stop))
        assert found.shape == chosen.shape
        assert not by_head or torch.equal(found[:, 1], found[:, 0].flip(0))
        rows: list[list[int]] = (found[:, 0] if by_head else found).tolist()
        return rows

    assert including(2 + 4 * 6, 2 + 4 * 6 + 1) == [[6, 9, 12], [5, 6, 7]]
    assert including(2 + 4 * 6 + 3, 2 + 4 * 7 + 1) == [[6, 7, 12], [5, 6, 7]]
    assert including(2, 40) == [[0, 1, 2]] * 2, "as many as there are slots"
    assert including(0, 2) == including(100, 200) == [[3, 9, 12], [5, 6, 7]], "nothing of it is in a block"


def test_an_oracle_knows_that_lost_blocks_hold_nothing(tmp_path: Path) -> None:
    stack = Stack(windows=(None,))
    memory = stack.memory(cascade(Archive(4, 3, Mean(), Tiers(200_000, 8_000_000, str(tmp_path / "blocks")))))
    stack.feed(memory, [t for seed in range(12) for t in tokens(128, seed=seed)], 64)
    for path in (tmp_path / "blocks").glob("*.blocks"):
        path.write_bytes(bytes(path.stat().st_size))
    blocks = archived(memory)
    assert blocks.store is not None
    _, there = blocks.store.fetch(torch.arange(len(blocks)))
    lost, kept = int((~there).nonzero()[0]), int(there.nonzero()[-1])
    chosen = torch.tensor([[lost, kept - 2, kept - 1]])
    assert blocks.including(chosen, range(2 + 4 * lost, 6 + 4 * lost)).tolist() == chosen.tolist()
    assert blocks.including(chosen, range(2 + 4 * kept, 6 + 4 * kept)).tolist() == [[kept - 2, kept - 1, kept]]


def test_a_memory_that_wants_something_reads_it() -> None:
    """A token without a key is never the best block; the oracle reads it all the same, and only in questions."""
    stack, far = Stack(windows=(None,)), 7
    stack.values[:, far], stack.keys[:, far] = 100.0, 0.0
    stream = [t for t in tokens(300, seed=4) if t != far]
    stream[102:106] = [far] * 4
    memory, other = (stack.memory(cascade(Archive(4, 2, Mean()))) for _ in range(2))
    stack.feed(memory, stream, 8)
    stack.feed(other, stream, 8)
    memory.wanted = range(102, 106)
    query = [9]
    assert float(ask(stack, other, query).abs().max()) < 10
    assert float(ask(stack, memory, query).abs().max()) > 10


def test_asking_changes_nothing() -> None:
    """Twice the same answer, and the stream goes on as if nothing had been asked (card rekv, check d)."""
    stack, stream = Stack(), tokens(100)
    plan = cascade(Archive(4, 2, Representatives(2)))
    memory, alone = stack.memory(plan, rows=2), stack.memory(plan)
    stack.feed(memory, stream[:70], 9)
    stack.feed(alone, stream[:70], 9)
    answers = []
    for _ in range(2):
        memory.copy_row(0, memory, 1)
        answers.append(ask(stack, memory, tokens(13, seed=8), row=1))
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(stack.feed(memory, stream[70:], 9), stack.feed(alone, stream[70:], 9))


def test_a_rollback_takes_blocks_back() -> None:
    stack, stream = Stack(), tokens(100)
    plan = cascade(Archive(4, 3, Bounds(2)))
    memory, alone = stack.memory(plan), stack.memory(plan)
    stack.feed(memory, stream[:61], 8)
    mark = memory.mark(max_new=64)
    for seed in (5, 6):
        stack.feed(memory, tokens(30, seed=seed), 8)
        memory.rollback(mark)
    memory.commit(mark)
    stack.feed(alone, stream[:61], 8)
    assert difference(stack.feed(memory, stream[61:], 8), stack.feed(alone, stream[61:], 8).double()) < 1e-6
    blocks = archived(memory)
    assert blocks.store is not None
    assert len(blocks.store) == len(blocks) == len(archived(alone))


@pytest.mark.parametrize("select", SELECTORS)
def test_saved_and_loaded_elsewhere(select: Selector) -> None:
    stack, stream = Stack(), tokens(120)
    plan = cascade(Archive(4, 3, select, SMALL, by_head=True))
    memory, other = stack.memory(plan), stack.memory(plan)
    stack.feed(memory, stream[:90], 8)
    other.load_row(memory.save_row(), 90)
    assert torch.equal(stack.feed(memory, stream[90:], 8), stack.feed(other, stream[90:], 8))
    assert torch.equal(ask(stack, memory, stream[:9]), ask(stack, other, stream[:9]))


def test_a_fork_chooses_among_equals_as_the_original_does(tmp_path: Path) -> None:
    """Its summaries lie in two pieces, so products once differed in the last bit, and with them the choice."""
    stack = Stack(windows=(None,))
    archive = Archive(4, 3, Representatives(2), Tiers(200_000, 8 << 20, str(tmp_path)), by_head=True)
    memory, fork = stack.memory(cascade(archive)), stack.memory(cascade(archive))
    for seed in range(10):
        stack.feed(memory, tokens(128, seed=seed), 64)
    memory.copy_row(0, fork, 0)
    for seed in (7, 8):
        assert torch.equal(stack.feed(memory, tokens(30, seed=seed), 8), stack.feed(fork, tokens(30, seed=seed), 8))


def test_main_memory_stays_within_its_limit() -> None:
    """The oldest blocks go, and their summaries with them; a question reads what is left."""
    stack = Stack()
    memory = stack.memory(cascade(Archive(4, 3, Mean(), SMALL)))
    for seed in range(40):
        stack.feed(memory, tokens(128, seed=seed), 64)
        assert memory.ram_bytes <= SMALL.ram
    blocks = archived(memory)
    assert 0 < blocks.oldest < len(blocks)
    assert blocks.base > 0
    assert all(run.last > blocks.oldest - len(stack.windows) for run in blocks.index.runs)
    assert memory.nbytes <= (memory.budget_bytes or 0)
    assert torch.isfinite(ask(stack, memory, tokens(9))).all()
    other = stack.memory(cascade(Archive(4, 3, Mean(), SMALL)))
    other.load_row(memory.save_row(), memory.length())
    assert torch.equal(ask(stack, memory, tokens(9, seed=7)), ask(stack, other, tokens(9, seed=7)))


def test_main_memory_of_forks_is_within_the_limit_too() -> None:
    """What their tables take, blocks give up."""
    stack, limit = Stack(), Tiers(500_000)
    memory = stack.memory(cascade(Archive(4, 3, Representatives(4), limit)))
    stack.feed(memory, tokens(1500), 64)
    forks = [stack.memory(cascade(Archive(4, 3, Representatives(4), limit))) for _ in range(2)]
    for seed, fork in enumerate(forks):
        memory.copy_row(0, fork, 0)
        stack.feed(fork, tokens(300, seed=seed), 64)
        assert memory.ram_bytes == fork.ram_bytes
        assert memory.ram_bytes <= limit.ram
    assert torch.isfinite(ask(stack, memory, tokens(9))).all()


@pytest.mark.parametrize(("select", "by_head"), [(Bounds(2), False), (Channels(4), False)])
def test_an_archive_with_an_index_is_saved_and_forked(select: Selector, by_head: bool, tmp_path: Path) -> None:
    """Lists, centres and what is not listed yet; a fork and a loaded one read what the original reads."""
    stack = Stack(windows=(None,))
    plans = [Archive(4, 3, select, Tiers(200_000, 2 << 20, str(tmp_path / name)), by_head=by_head) for name in "ab"]
    memory, other, fork = (stack.memory(cascade(plans[i])) for i in (0, 1, 0))
    stream = [t for seed in range(12) for t in tokens(128, seed=seed)]
    stack.feed(memory, stream, 64)
    blocks = archived(memory)
    assert blocks.index.runs
    assert blocks.oldest < blocks.base <= len(blocks)
    assert memory.ram_bytes <= 200_000
    other.load_row(memory.save_row(), memory.length())
    memory.copy_row(0, fork, 0)
    for seed in range(3):
        expected = ask(stack, memory, tokens(13, seed=seed))
        assert torch.equal(ask(stack, other, tokens(13, seed=seed)), expected)
        assert torch.equal(ask(stack, fork, tokens(13, seed=seed)), expected)
    chosen = blocks.choose(torch.randn(2, 2, 3, 8, generator=torch.Generator().manual_seed(0)), 3)
    assert chosen.shape == (3, 2, 3) if by_head else (3, 3)
    assert int(chosen.min()) >= blocks.oldest
    assert int(chosen.max()) < len(blocks)


def test_blocks_of_odd_sizes_are_looked_at() -> None:
    """With one head to a row and five marks behind its keys, the next row's keys were not aligned."""
    stack = Stack(windows=(None,))
    memory = stack.memory(cascade(Archive(5, 3, Representatives(2), Tiers(200_000), by_head=True)))
    stack.feed(memory, [t for seed in range(12) for t in tokens(128, seed=seed)], 64)
    assert archived(memory).base > archived(memory).oldest
    assert torch.isfinite(ask(stack, memory, tokens(9))).all()


def test_tiers_of_all_layers_and_rows_together() -> None:
    """What is given as enough is enough for every row; a byte less is refused when the memory is made."""
    stack = Stack()

    def plan(ram: int) -> Cascade:
        return cascade(Archive(4, 1, Mean(), Tiers(ram)))

    with pytest.raises(BudgetError, match="the 6 archives of this memory") as refused:
        stack.memory(plan(1000), rows=3)
    enough = int(str(refused.value).rpartition("give ram=")[2].removesuffix("KiB or more.")) << 10
    with pytest.raises(BudgetError):
        stack.memory(plan(enough - 1024), rows=3)
    memory = stack.memory(plan(enough), rows=3)
    for row in range(3):
        stack.feed(memory, tokens(400, seed=row), 64, row=row)
        assert memory.ram_bytes <= enough


def test_with_a_disk_nothing_is_lost(tmp_path: Path) -> None:
    stack = Stack()
    wide = stack.memory(cascade(Archive(4, 3, Mean())))
    small = stack.memory(cascade(Archive(4, 3, Mean(), Tiers(400_000, 8_000_000, str(tmp_path / "blocks")))))
    for seed in range(12):
        stream = tokens(128, seed=seed)
        assert torch.equal(stack.feed(wide, stream, 64), stack.feed(small, stream, 64))
        assert small.ram_bytes <= 400_000
        assert small.disk_bytes <= 8_000_000
    assert archived(small).oldest == 0
    assert small.disk_bytes > 0
    assert torch.equal(ask(stack, wide, tokens(20)), ask(stack, small, tokens(20)))


def test_lost_blocks_are_not_read(tmp_path: Path) -> None:
    """Files full of zeros: what is read is what main memory has, and nothing wrong."""
    stack = Stack()
    memory = stack.memory(cascade(Archive(4, 3, Mean(), Tiers(400_000, 8_000_000, str(tmp_path / "blocks")))))
    stack.feed(memory, [t for seed in range(12) for t in tokens(128, seed=seed)], 64)
    for path in (tmp_path / "blocks").glob("*.blocks"):
        path.write_bytes(bytes(path.stat().st_size))
    blocks = archived(memory)
    assert blocks.store is not None
    _, there = blocks.store.fetch(torch.arange(len(blocks)))
    assert there.any()
    assert not there.all()
    ids = torch.stack((there.nonzero()[0, 0], (~there).nonzero()[0, 0])).sort().values
    assert len(blocks.fetch(ids)) == 4
    assert torch.isfinite(ask(stack, memory, tokens(9))).all()


@pytest.mark.parametrize("positions", ["stream", "clamped", "contiguous"])
@pytest.mark.parametrize("ingest", ["unit", "token", "none"])
def test_chunks_and_the_specification(positions: str, ingest: str) -> None:
    stack, stream = Stack(), tokens(101)
    plan = cascade(Archive(4, 3, Mean(), ingest=ingest), positions)
    whole = stack.feed(stack.memory(plan), stream)
    for chunk in (1, 7):
        assert difference(stack.feed(stack.memory(plan), stream, chunk), whole.double()) < 2e-6
    assert difference(stack.feed(stack.memory(plan, naive=True), stream), whole.double()) < 2e-5


def test_far_numbers_of_contiguous_positions_have_no_gap() -> None:
    """What a query reads while a stream is read is numbered without holes: retrieved, pending, window, tail."""
    stack = Stack()
    memory = stack.memory(cascade(Archive(4, 3, Mean()), "contiguous"))
    stack.feed(memory, tokens(90), 64)
    [lane] = memory.groups[0].lanes[0][0]
    state, part = lane.states[-1], memory.cascades[0].segments[-1]
    assert isinstance(memory.cascades[0], Cascade)
    count, oldest, newest = part.span(state)  # type: ignore[union-attr]
    assert count == len(state["near"]) + len(state["pending"]) == 12 + len(state["pending"])
    assert (oldest, newest) == (2, 88 - 6 - 1)
    assert lane.ranks is not None
    assert lane.ranks.total == 2 + 6 + count


def test_rows_of_a_fork_share_the_past() -> None:
    def row(n: int) -> Tensor:
        return torch.full((1, 2), float(n))

    first = Rows.empty((2,))
    for n in range(200):
        first = first.append(row(n))
    one, other = first.append(row(-1)), first.append(row(-2))
    assert other.base.buffer is first.base.buffer
    assert torch.cat(one.parts)[:, 0].tolist() == [*range(200), -1]
    assert torch.cat(other.parts)[:, 0].tolist() == [*range(200), -2]
    for n in range(300):
        other = other.append(row(1000 + n))
    assert torch.cat(other.parts)[:, 0].tolist() == [*range(200), -2, *range(1000, 1300)]
    assert torch.cat(one.from_row(150).parts)[:, 0].tolist() == [*range(150, 200), -1]
    assert len(first) == 200


def test_rows_are_scored_where_they_lie() -> None:
    """They were copied, to be brought into the order of heads, for every choice: half of what a choice cost."""
    rows = Rows.empty((2, 3, 4), room=600).append(torch.randn(600, 2, 3, 4))
    pieces = list(rows.pieces(100))
    assert torch.equal(torch.cat(pieces), torch.cat(rows.parts)[100:])
    start, size = rows.base.buffer.data.data_ptr(), rows.base.buffer.data.nbytes
    for piece in pieces:
        assert start <= piece.transpose(0, 1).flatten(1, 2).data_ptr() < start + size


def test_what_a_choice_looks_at_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the stream: as many blocks are fetched and scored for a choice."""
    stack, slots = Stack(windows=(None,)), 3
    memory = stack.memory(
        cascade(Archive(4, slots, Representatives(4), Tiers(1_000_000, 16 << 20, str(tmp_path / "b"))))
    )
    fetched: list[int] = []
    scored: list[int] = []
    fetch, score = BlockStore.fetch_bytes, Representatives.score
    monkeypatch.setattr(
        BlockStore, "fetch_bytes", lambda self, ids, part: (fetched.append(len(ids)), fetch(self, ids, part))[1]
    )
    monkeypatch.setattr(
        Representatives, "score", lambda self, rows, query: (scored.append(len(rows)), score(self, rows, query))[1]
    )
    seen: list[tuple[int, int]] = []
    for length in (600, 2200):
        while len(archived(memory)) < length:
            stack.feed(memory, tokens(128, seed=memory.length()), 64)
        blocks = archived(memory)
        assert blocks.base - blocks.oldest > 4 * slots, "there is more in the index than is looked at"
        fetched.clear()
        scored.clear()
        blocks.choose(torch.randn(2, 2, 1, 8, generator=torch.Generator().manual_seed(0)), slots)
        assert sum(fetched) <= 4 * slots
        assert sum(scored) <= 4 * slots + blocks.run
        fetched.clear()
        blocks.choose(torch.randn(2, 2, 1, 8, generator=torch.Generator().manual_seed(0)), slots, asks=False)
        assert 0 < sum(fetched) <= 2 * slots, "a token of an answer looks at half as many"
        assert blocks.count - blocks.base < blocks.run // 4, "runs behind the first are a fourth of it"
        fetched.clear()
        blocks.choose(torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)), slots)
        assert 4 * slots < sum(fetched) <= 8 * 4 * slots, "tokens of a question do not share what one looks at"
        fetched.clear()
        blocks.choose(torch.randn(2, 2, 1, 8, generator=torch.Generator().manual_seed(0)), slots)
        seen.append((sum(fetched), blocks.live))
    assert seen[1][1] > 3 * seen[0][1]
    assert seen[1][0] == seen[0][0]


def test_tokens_of_answers_go_on_from_what_their_question_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """They look at fewer blocks; those of the question, and of what is read, as they always did."""
    stack = Stack()
    memory = stack.memory(cascade(Archive(4, 3, Mean(), ingest="token")))
    stack.feed(memory, tokens(128), 64)
    asked: set[bool] = set()
    choose = Archived.choose
    monkeypatch.setattr(
        Archived, "choose", lambda self, *args, **how: (asked.add(how["asks"]), choose(self, *args, **how))[1]
    )
    real = memory.step
    for phase, asks in ((Phase.INGEST, True), (Phase.ASK, True), (Phase.ANSWER, False)):
        asked.clear()
        monkeypatch.setattr(memory, "step", partial(real, phase=phase))
        stack.feed(memory, tokens(1))
        assert asked == {asks}, phase


def test_what_is_refused() -> None:
    with pytest.raises(BudgetError, match="raise the budget"):
        Archive(4, 0)
    with pytest.raises(CompositionError, match="choose unit"):
        Archive(4, 1, ingest="sometimes")
    with pytest.raises(BudgetError, match="give ram="):
        Stack().memory(cascade(Archive(4, 1, Mean(), Tiers(1000))))
    with pytest.raises(CompositionError, match="carry positions"):
        Stack("alibi").memory(cascade(Archive(4, 1)))
    with pytest.raises(BudgetError, match="folder"):
        Tiers(1000, 1000)
    with pytest.raises(BudgetError, match="not possible"):
        Tiers(0)
