"""The reader thread, several callers, and a disk that takes its time."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from penstock.memory.tiers import disk

from .tiers import Watched, numbered, present


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blocks"


def wait_for(condition: Callable[[], bool]) -> None:
    """Until the other thread has done it; gives up after a minute."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the thread did not get there")


def test_prefetch_brings_blocks_to_ram(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(32, 200, folder)
    store = watched.filled(100)
    [shelf] = watched.pool._shelves.values()
    wanted = torch.tensor([3, 4, 5, 10, 4, -1, 1000])
    assert all(shelf.is_below(store.table.get(i)) for i in (3, 4, 5, 10))
    store.prefetch(wanted)
    wait_for(lambda: not any(shelf.is_below(store.table.get(i)) for i in (3, 4, 5, 10)))
    monkeypatch.setattr(disk, "read_at", lambda *_: pytest.fail("read from the disk"))
    blocks, there = store.fetch(wanted)
    assert there.tolist() == [True] * 5 + [False] * 2
    assert torch.equal(blocks[:4], numbered(3, 4, 5, 10))
    watched.check()


def test_damage_found_by_the_thread_is_told_to_the_caller(folder: Path) -> None:
    watched = Watched(8, 200, folder)
    store = watched.filled(60)
    for path in folder.glob("*.blocks"):
        path.write_bytes(b"\0" * path.stat().st_size)
    [shelf] = watched.pool._shelves.values()
    store.prefetch(torch.tensor([2]))
    wait_for(lambda: bool(shelf.gone(torch.tensor([store.table.get(2)]).numpy())[0]))
    assert watched.events == [], "events come in the caller's thread"
    assert store.fetch(torch.tensor([2]))[1].tolist() == [False]
    assert set(watched.reasons("lost")) == {2}


def test_prefetch_never_raises(folder: Path) -> None:
    watched = Watched(8, 200, folder)
    store = watched.filled(20)
    store.prefetch(torch.zeros(0, dtype=torch.int64))
    store.close()
    store.prefetch(torch.tensor([1]))
    watched.pool.close()
    store.prefetch(torch.tensor([1]))


def test_two_threads_and_the_reader(folder: Path) -> None:
    """One appends, forks and rolls back, one reads what is there; every block that is returned is right."""
    watched = Watched(16, 400, folder)
    store = watched.filled(30)
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        generator = torch.Generator().manual_seed(1)
        try:
            while not done.is_set():
                ids = torch.randint(0, 30, (6,), generator=generator)
                store.prefetch(torch.randint(0, 30, (6,), generator=generator))
                blocks, there = store.fetch(ids)
                assert there.all()
                assert torch.equal(blocks, numbered(*ids.tolist()))
                watched.check()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(30, 150):
        store.append(numbered(number))
        fork = store.fork(number - 5)
        fork.append(numbered(7000, 7001))
        if number % 3 == 0:
            store.truncate(number)
            store.append(numbered(number))
        fork.close()
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert present(store) == list(range(150))
    watched.pool.close()


def test_a_rollback_while_blocks_are_on_their_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(16, 200, folder)
    store = watched.filled(60)
    reading, go_on = threading.Event(), threading.Event()
    plain = disk.read_at

    def slow(*args: object) -> int:
        if threading.current_thread() is not threading.main_thread():
            reading.set()
            go_on.wait(60)
        return plain(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(disk, "read_at", slow)
    store.prefetch(torch.tensor([30, 31]))
    assert reading.wait(60)
    store.truncate(20)
    store.append(numbered(*range(20, 50)))
    go_on.set()
    [shelf] = watched.pool._shelves.values()
    wait_for(lambda: not shelf.loading)
    assert present(store) == list(range(50))
    store.close()
    assert watched.pool.ram_bytes == 0
    assert watched.events == []


def test_a_fetch_does_not_wait_for_a_slow_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(16, 200, folder, patience=0.01)
    store = watched.filled(60)
    go_on = threading.Event()
    plain = disk.read_at

    def slow(*args: object) -> int:
        go_on.wait(60)
        return plain(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(disk, "read_at", slow)
    blocks, there = store.fetch(torch.tensor([2, 59, 3]))
    assert there.tolist() == [False, True, False]
    assert torch.equal(blocks[1], numbered(59)[0])
    assert not blocks[[0, 2]].any()
    assert set(watched.reasons("late")) == {2, 3}
    go_on.set()
    [shelf] = watched.pool._shelves.values()
    wait_for(lambda: not shelf.is_below(store.table.get(2)) and not shelf.is_below(store.table.get(3)))
    blocks, there = store.fetch(torch.tensor([2, 3]))
    assert there.all()
    assert torch.equal(blocks, numbered(2, 3))
    watched.pool.close()


def test_a_forgotten_pool_ends_its_thread(folder: Path) -> None:
    watched = Watched(16, 200, folder)
    store = watched.filled(60)
    store.prefetch(torch.tensor([2]))
    thread = watched.pool.reader.thread
    assert thread is not None
    pool = weakref.ref(watched.pool)
    del watched, store
    gc.collect()
    wait_for(lambda: not thread.is_alive())
    assert pool() is None
    assert not folder.exists(), "a spill that was forgotten leaves nothing"
