"""Block stores in RAM and on a disk: against a dict, within their limits at every moment."""

from __future__ import annotations

import tempfile
import threading
from ctypes import string_at
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import BudgetError, CompositionError, MemoryStateError, SnapshotError
from penstock.memory.tiers import BlockStore, Pool, TierEvent
from penstock.memory.vector import Buffer

from .tiers import BLOCK, SHAPE, SLOT, Watched, numbered, present

OPS = st.lists(st.tuples(st.sampled_from(["append", "append", "truncate", "fork", "close", "fetch", "prefetch"]),
                         st.integers(0, 3), st.floats(0, 1)), max_size=40)  # fmt: skip


def lent(store: BlockStore, ids: list[int], expected: list[int]) -> bool:
    """Whether a store lends blocks; what lies at the addresses is checked."""
    with store.lent(torch.tensor(ids, dtype=torch.int64)) as addresses:
        if addresses is None:
            return False
        found = [string_at(address, BLOCK) for address in addresses.tolist()]
    assert found == [numbered(n).numpy().tobytes() for n in expected]
    return True


@settings(max_examples=60)
@given(ops=OPS, disk=st.booleans())
def test_stores_are_dicts_that_fork(ops: list[tuple[str, int, float]], disk: bool) -> None:
    """Nothing is dropped as long as the last tier has room, and no fork notices another."""
    with tempfile.TemporaryDirectory() as folder:
        watched = Watched(8, 400, Path(folder) / "blocks") if disk else Watched(400)
        stores, models, number = [watched.open()], [dict[int, int]()], 0
        for op, which, share in ops:
            if not stores:
                break
            which %= len(stores)
            store, model = stores[which], models[which]
            if op == "append":
                new = range(number, number := number + 1 + int(share * 5))
                assert store.append(numbered(*new)) == len(model)
                model.update(enumerate(new, start=len(model)))
            elif op in ("truncate", "fork"):
                count = round(share * len(model))
                kept = {index: n for index, n in model.items() if index < count}
                if op == "truncate":
                    store.truncate(count)
                    models[which] = kept
                elif len(stores) < 4:
                    stores.append(store.fork(count))
                    models.append(kept)
            elif op == "close":
                store.close()
                del stores[which], models[which]
            else:
                ids = torch.randint(0, len(model) + 2, (5,), generator=torch.Generator().manual_seed(int(share * 1e6)))
                if op == "prefetch":
                    store.prefetch(ids)
                else:
                    lent(store, [i for i in ids.tolist() if i in model], [model[i] for i in ids.tolist() if i in model])
                    blocks, there = store.fetch(ids)
                    assert there.tolist() == [index in model for index in ids.tolist()]
                    assert torch.equal(blocks[there], numbered(*(model[i] for i in ids.tolist() if i in model)))
            watched.check()
        for store, model in zip(stores, models):
            assert len(store) == len(model)
            blocks, there = store.fetch(torch.arange(len(model)))
            assert there.all()
            assert torch.equal(blocks, numbered(*model.values()))
            store.close()
        assert watched.pool.ram_bytes == 0
        watched.pool.close()
        assert watched.events == []
        assert list(Path(folder).iterdir()) == []


def test_ram_alone_drops_the_oldest() -> None:
    watched = Watched(10)
    store = watched.open()
    for number in range(35):
        store.append(numbered(number))
        watched.check()
        assert store.oldest == max(0, number - 9)
        store.fetch(torch.tensor([store.oldest]))  # used just now, and still the next one to go
    assert present(store) == list(range(25, 35))
    assert watched.reasons("dropped") == dict.fromkeys(range(25), "the RAM tier is full")
    assert watched.pool.ram_bytes == 10 * BLOCK


def test_the_disk_drops_the_oldest_and_RAM_the_coldest(tmp_path: Path) -> None:
    watched = Watched(8, 30, tmp_path / "blocks")
    store = watched.filled(25)
    assert watched.events == []
    assert present(store) == list(range(25))
    for number in range(25, 100):
        store.append(numbered(number))
        store.fetch(torch.tensor([number - 20]))
        watched.check()
    for _ in range(2):  # reading drops nothing
        assert present(store) == list(range(70, 100))
    assert store.oldest == 70
    assert watched.reasons("dropped") == dict.fromkeys(range(70), "the disk tier is full")


def test_recently_used_blocks_stay_in_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(16, 100, tmp_path / "blocks")
    store = watched.filled(16)
    for number in range(16, 60):
        store.fetch(torch.tensor([3, 5]))
        store.append(numbered(number))
    monkeypatch.setattr("penstock.memory.tiers.disk.read_at", lambda *_: pytest.fail("read from the disk"))
    assert store.fetch(torch.tensor([3, 5, 59]))[1].all()


def test_an_append_larger_than_all_tiers(tmp_path: Path) -> None:
    watched = Watched(4, 10, tmp_path / "blocks")
    store = watched.open()
    store.append(numbered(*range(50)))
    watched.check()
    assert present(store) == list(range(40, 50))
    assert store.append(numbered()) == 50


def test_what_is_lent(tmp_path: Path) -> None:
    """All of it or nothing: blocks in RAM, and those on the disk that RAM has room for beside them."""
    watched = Watched(16, 64, tmp_path / "blocks")
    store = watched.filled(40)
    assert lent(store, [38, 39, 38], [38, 39, 38])
    assert store.shelf.is_below(store.table.get(2))
    assert lent(store, [2, 39, 3], [2, 39, 3])
    assert not store.shelf.is_below(store.table.get(2))
    assert not lent(store, list(range(20)), list(range(20))), "more than RAM has room for"
    assert not lent(store, [], [])
    assert not lent(store, [39, 40], []), "one was never given"
    assert not lent(store, [-1, 39], [])
    store.shelf.drop([store.table.get(39)], "lost", "a test")
    assert not lent(store, [38, 39], [])
    assert lent(store, [38], [38])
    watched.check()


def test_a_lent_block_is_not_overwritten(tmp_path: Path) -> None:
    """Whoever appends waits until it was given back."""
    watched = Watched(2)
    store = watched.filled(2)
    done: list[int] = []
    with store.lent(torch.tensor([0, 1])) as addresses:
        assert addresses is not None
        other = threading.Thread(target=lambda: done.append(store.append(numbered(2, 3))))
        other.start()
        other.join(0.05)
        assert not done
        assert string_at(int(addresses[0]), BLOCK) == numbered(0).numpy().tobytes()
    other.join(10)
    assert done == [2]
    assert not lent(store, [0], [0])


def test_what_is_fetched_meanwhile_does_not_push_out_what_is_lent(tmp_path: Path) -> None:
    """The lock lets its own thread in: a second request overwrote what the first one still read."""
    watched = Watched(16, 64, tmp_path / "blocks")
    store = watched.filled(60)
    with store.lent(torch.arange(52, 60)) as addresses:
        assert addresses is not None
        assert not lent(store, [1], [1]), "one at a time"
        blocks, there = store.fetch(torch.arange(40))
        assert there.all()
        assert torch.equal(blocks, numbered(*range(40)))
        for change in (lambda: store.append(numbered(60)), lambda: store.truncate(3)):
            with pytest.raises(MemoryStateError, match="are lent"):
                change()
        found = [string_at(address, BLOCK) for address in addresses.tolist()]
        assert found == [numbered(n).numpy().tobytes() for n in range(52, 60)]
    assert lent(store, [1], [1])
    store.append(numbered(60))
    watched.check()


def test_events_are_told_when_nothing_is_locked(tmp_path: Path) -> None:
    """Of a block that is found damaged while it should be lent: whoever is told may use the pool from a thread."""
    told: list[bool] = []

    def other() -> None:
        told.append(watched.pool.lock.acquire(timeout=5))
        if told[-1]:
            watched.pool.lock.release()

    def on_event(event: TierEvent) -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    watched = Watched(8, 64, tmp_path / "blocks")
    store = watched.filled(30)
    store.shelf.records.checksum[store.table.get(2)] = np.void(b"\0" * store.shelf.records.checksum.dtype.itemsize)
    watched.pool.journal.on_event = on_event
    with store.lent(torch.tensor([2, 3])) as addresses:
        assert addresses is None
        _, there = store.fetch(torch.tensor([2, 3]))
    assert there.tolist() == [False, True]
    assert told
    assert all(told)


def test_unknown_ids_are_absent() -> None:
    store = Watched(4).filled(2)
    blocks, there = store.fetch(torch.tensor([-1, 0, 2, 1, 1 << 40]))
    assert there.tolist() == [False, True, False, True, False]
    assert torch.equal(blocks[[1, 3]], numbered(0, 1))
    assert store.fetch(torch.zeros(0, dtype=torch.int64))[0].shape == (0, *SHAPE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.float64])
def test_every_kind_of_number_comes_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    pool = Pool(4096, 1 << 20, tmp_path / "blocks")
    store = pool.open((3, 5), dtype, "layer")
    blocks = (torch.randn(300, 3, 5, generator=torch.Generator().manual_seed(1)) * 50).to(dtype)
    store.append(blocks[:, :, :].transpose(1, 2).contiguous().transpose(1, 2))
    assert torch.equal(store.fetch(torch.arange(300))[0], blocks)


def test_blocks_are_sealed() -> None:
    store = Watched(4).open()
    given_ = numbered(0)
    store.append(given_)
    given_ += 1
    store.fetch(torch.tensor([0]))[0].zero_()
    assert present(store) == [0]


def test_stores_of_different_sizes_share_the_limits(tmp_path: Path) -> None:
    watched = Watched(64, 300, tmp_path / "blocks")
    small = watched.filled(200)
    assert watched.pool.ram_bytes == 64 * BLOCK
    large = watched.pool.open((7, *SHAPE), torch.float32, "wide")  # takes RAM and files from the other
    watched.check()
    for number in range(30):
        large.append(numbered(*range(7 * number, 7 * number + 7))[None])
        small.append(numbered(200 + number))
        watched.check()
    blocks, there = large.fetch(torch.arange(30))
    assert torch.equal(
        blocks[there].flatten(0, 1), numbered(*(7 * i + j for i in torch.arange(30)[there] for j in range(7)))
    )
    assert there[-20:].all()
    ids = present(small)
    assert ids[-1] == 229
    assert len(ids) >= 20
    large.close()
    small.append(numbered(*range(230, 330)))
    watched.check()
    assert present(small) == list(range(ids[0], 330)), "what the closed store left is used again"


def test_many_forks_cost_no_memory() -> None:
    watched = Watched(50)
    store = watched.filled(40)
    before = watched.pool.ram_bytes
    for number in range(200):
        fork = store.fork(40)
        fork.append(numbered(1000 + number))
        assert torch.equal(fork.fetch(torch.tensor([39, 40]))[0], numbered(39, 1000 + number))
        fork.close()
    assert watched.pool.ram_bytes <= 50 * BLOCK
    assert before > 0
    assert present(store) == list(range(40))
    assert watched.events == []


def test_tables_are_counted_once_and_as_long_as_somebody_has_them() -> None:
    watched = Watched(50)
    watched.pool.open((8,), torch.uint8, "counted", beside=1)
    before = watched.pool.table_bytes
    first, second = Buffer(torch.zeros(10)), Buffer(torch.zeros(100))
    for _ in range(3):
        watched.pool.count_in(first, second)
    assert watched.pool.table_bytes == before + 440
    del second
    assert watched.pool.table_bytes == before + 40
    for size in range(1, 50):  # an identity is used again
        other = Buffer(torch.zeros(size))
        watched.pool.count_in(other)
        assert watched.pool.table_bytes == before + 40 + 4 * size
        del other
    assert watched.pool.table_bytes == before + 40


def test_an_abandoned_fork_is_collected() -> None:
    watched = Watched(10)
    store = watched.filled(4)
    for number in range(50):
        store.fork().append(numbered(100 + number, 200 + number, 300 + number))
    assert present(store) == list(range(4))
    assert watched.events == []


def test_caller_mistakes() -> None:
    with pytest.raises(BudgetError, match="folder"):
        Pool(1000, 1000)
    with pytest.raises(BudgetError, match="durable"):
        Pool(1000, durable=True)
    with pytest.raises(BudgetError, match="above zero"):
        Pool(0)
    pool = Pool(2 * BLOCK)
    with pytest.raises(BudgetError, match=f"takes {8 * BLOCK}"):
        pool.open((8, *SHAPE), torch.float32, "too large")
    store = pool.open(SHAPE, torch.float32, "layer")
    with pytest.raises(CompositionError, match="label"):
        pool.open(SHAPE, torch.float32, "layer")
    with pytest.raises(CompositionError, match="zeros"):
        pool.open((0,), torch.float32, "nothing")
    pool.open(SHAPE, torch.float32, "second")
    with pytest.raises(BudgetError, match="one block per store"):
        pool.open(SHAPE, torch.float32, "third")
    with pytest.raises(MemoryStateError, match="takes blocks"):
        store.append(torch.zeros(1, 4))
    with pytest.raises(MemoryStateError, match="takes blocks"):
        store.append(numbered(1).half())
    with pytest.raises(MemoryStateError, match="cannot be cut"):
        store.truncate(1)
    with pytest.raises(MemoryStateError, match="cannot be forked"):
        store.fork(1)
    store.close()
    store.close()
    with pytest.raises(MemoryStateError, match="closed"):
        store.fetch(torch.tensor([0]))
    pool.close()
    pool.close()
    with pytest.raises(MemoryStateError, match="closed"):
        pool.open(SHAPE, torch.float32, "late")


def test_the_disk_needs_room_for_a_block_per_store(tmp_path: Path) -> None:
    pool = Pool(100 * BLOCK, SLOT, tmp_path / "blocks")
    pool.open(SHAPE, torch.float32, "one")
    with pytest.raises(BudgetError, match="disk tier"):
        pool.open(SHAPE, torch.float32, "two")
    assert set(pool.stores) == {"one"}


def test_a_folder_is_for_one_pool(tmp_path: Path) -> None:
    pool = Pool(1000, 1 << 20, tmp_path / "blocks")
    with pytest.raises(SnapshotError, match="in use"):
        Pool(1000, 1 << 20, tmp_path / "blocks")
    pool.close()
    Pool(1000, 1 << 20, tmp_path / "blocks").close()
