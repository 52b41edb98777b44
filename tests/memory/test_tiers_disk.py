"""The disk tier under damage: what cannot be verified is lost, never returned, and an event says why."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penstock.memory.tiers import copies, disk, header

from .tiers import BLOCK, SLOT, Watched, numbered, present


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blocks"


def spilled(folder: Path, count: int = 20, **options: object) -> tuple[Watched, list[tuple[Path, int]]]:
    """A pool with one RAM slot and the place of each of its blocks on the disk; the last may be in RAM only."""
    watched = Watched(1, 100, folder, **options)
    watched.filled(count)
    [shelf] = watched.pool._shelves.values()
    places = []
    for block in range(count - 1):
        slot = int(shelf.records.disk[watched.pool.stores["layer"].table.get(block)])
        name, row = shelf.files.name(slot) if shelf.files is not None else ("", 0)
        places.append((folder / name, row * SLOT))
    return watched, places


def bytes_at(place: tuple[Path, int], size: int = SLOT) -> bytes:
    path, offset = place
    return path.read_bytes()[offset : offset + size]


def overwrite(place: tuple[Path, int], data: bytes) -> None:
    path, offset = place
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("at", [0, 9, 30, 60, 70, 78, 128, 200, 128 + BLOCK - 1])
def test_one_altered_bit_loses_the_block(folder: Path, at: int) -> None:
    """In the header: format, session, store, id, length, checksum; in the content: first, some, last byte."""
    watched, places = spilled(folder)
    path, offset = places[5]
    overwrite((path, offset + at), bytes([bytes_at((path, offset + at), 1)[0] ^ 1]))
    store = watched.pool.stores["layer"]
    assert present(store) == [i for i in range(20) if i != 5]
    assert present(store) == [i for i in range(20) if i != 5]
    assert set(watched.reasons("lost")) == {5}
    store.append(numbered(20))
    assert 20 in present(store)


def test_a_block_is_read_and_verified_once_while_it_stays_in_ram(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbouring tokens of an answer choose mostly the same blocks; each pays for what is new to it."""
    watched = Watched(8, 100, folder)
    store = watched.filled(30)
    read_at, reads = disk.read_at, []
    monkeypatch.setattr(disk, "read_at", lambda *given: (reads.append(given[2]), read_at(*given))[1])
    wanted = torch.tensor([3, 9, 3, 11, 9])
    blocks, there = store.fetch(wanted)
    assert there.all()
    assert torch.equal(blocks, numbered(3, 9, 3, 11, 9))
    assert len(reads) == 3, "a block that is asked for twice is read once"
    for _ in range(5):
        assert torch.equal(store.fetch(torch.tensor([9, 11, 3]))[0], numbered(9, 11, 3))
    assert len(reads) == 3
    [shelf] = watched.pool._shelves.values()
    assert shelf.files is not None
    name, row = shelf.files.name(int(shelf.records.disk[store.table.get(9)]))
    overwrite((folder / name, row * SLOT + 130), b"\xff\xee")
    assert torch.equal(store.fetch(torch.tensor([9]))[0], numbered(9)), "the copy in RAM was verified"
    for block in range(12, 28):  # others take its place
        store.fetch(torch.tensor([block]))
    blocks, there = store.fetch(torch.tensor([9, 3]))
    assert there.tolist() == [False, True]
    assert not blocks[0].any()
    assert set(watched.reasons("lost")) == {9}


def test_nobody_waits_for_the_disk_for_blocks_that_end_with_the_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Archives append to forks, which no recovery brings back.  Each batch of their blocks was synced all the same:
    40% of the time in which an archive of small blocks grew to a million tokens."""
    watched = Watched(4, 100, folder)
    store = watched.filled(10)
    fork = store.fork()
    fork.append(numbered(*range(100, 110)))  # the last blocks of the original are written with them
    fsync, reserve, synced, made = os.fsync, disk.reserve, [], []
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), fsync(file))[1])
    monkeypatch.setattr(disk, "reserve", lambda *given: (made.append(given), reserve(*given))[1])
    for number in range(110, 120):
        fork.append(numbered(number))
        watched.check()
    assert len(synced) == 2 * len(made), "new files and their names only"
    for number in range(10, 30):
        store.append(numbered(number))
    assert len(synced) > 2 * len(made), "what can be recovered is synced"
    assert present(store) == list(range(30))
    blocks, there = fork.fetch(torch.arange(30))
    assert there.all()
    assert torch.equal(blocks, numbered(*range(10), *range(100, 120)))
    assert watched.events == []


def test_exchanged_blocks_are_both_lost(folder: Path) -> None:
    watched, places = spilled(folder)
    one, other = bytes_at(places[3]), bytes_at(places[8])
    overwrite(places[3], other)
    overwrite(places[8], one)
    assert present(watched.pool.stores["layer"]) == [i for i in range(20) if i not in (3, 8)]
    assert watched.reasons("lost") == dict.fromkeys((3, 8), "the file holds a block of another block id")


def test_a_block_of_a_fork_is_not_one_of_the_original(folder: Path) -> None:
    """Both have id 18; only the line of stores and the content differ."""
    watched, _ = spilled(folder, 19)
    store = watched.pool.stores["layer"]
    fork = store.fork(18)
    fork.append(numbered(500, 501, 502))
    [shelf] = watched.pool._shelves.values()
    assert shelf.files is not None
    store.append(numbered(19, 20))
    mine, theirs = (shelf.files.name(int(shelf.records.disk[s.table.get(18)])) for s in (store, fork))
    overwrite((folder / mine[0], mine[1] * SLOT), bytes_at((folder / theirs[0], theirs[1] * SLOT)))
    assert present(store) == [i for i in range(21) if i != 18]
    assert watched.reasons("lost") == {18: "the file holds a block of another store"}
    assert torch.equal(fork.fetch(torch.tensor([18]))[0], numbered(500))


@pytest.mark.parametrize(
    ("session", "generation", "what"), [("other", 0, "session"), ("s", 1, "generation"), ("s", -1, "generation")]
)
def test_files_of_another_session_or_generation(folder: Path, session: str, generation: int, what: str) -> None:
    """The same blocks, written by somebody else: same label, ids and content, and not believed."""
    watched, places = spilled(folder)
    for i, place in enumerate(places):
        found = bytes_at(place)
        numbers, checksum = np.array([[0], [generation], [i]]), np.void(header.digest(found[128:]))
        fake = header.pack(session, ["layer"], *numbers, BLOCK, np.array([checksum]))
        overwrite(place, fake.tobytes() + found[128:])
    assert present(watched.pool.stores["layer"]) in ([19], [])
    assert set(watched.reasons("lost").values()) == {f"the file holds a block of another {what}"}


def test_exchanged_files(folder: Path) -> None:
    watched, places = spilled(folder, 90)
    paths = sorted({path for path, _ in places})
    assert len(paths) > 1
    one, other = paths[0].read_bytes(), paths[1].read_bytes()
    size = min(len(one), len(other))
    overwrite((paths[0], 0), other[:size])
    overwrite((paths[1], 0), one[:size])
    lost = {i for i, (path, offset) in enumerate(places) if path in paths[:2] and offset < size}
    assert present(watched.pool.stores["layer"]) == [i for i in range(90) if i not in lost]
    assert len(lost) >= 12


def test_a_file_that_was_cut_short(folder: Path) -> None:
    watched, places = spilled(folder)
    path, offset = places[7]
    os.truncate(path, offset + 130)
    lost = {i for i, (where, at) in enumerate(places) if where == path and at >= offset}
    store = watched.pool.stores["layer"]
    assert present(store) == [i for i in range(20) if i not in lost]
    assert set(watched.reasons("lost")) == lost
    assert all("cut short" in reason for reason in watched.reasons("lost").values())
    store.append(numbered(*range(20, 40)))
    assert set(range(20, 40)) <= set(present(store)), "the places are written again"


def test_deleted_files_and_a_deleted_folder(folder: Path) -> None:
    """What is open can still be read; no new file can be made, so the tier goes on in those it has."""
    watched, _ = spilled(folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    store = watched.pool.stores["layer"]
    assert present(store) == list(range(20))
    for number in range(20, 80):
        store.append(numbered(number))
    ids = present(store)
    assert ids[-1] == 79
    assert ids == list(range(ids[0], 80))
    assert any(event.kind == "unwritten" and "cannot grow" in event.reason for event in watched.events)
    watched.pool.close()


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched, _ = spilled(folder)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk, "read_at", fail)
    store = watched.pool.stores["layer"]
    assert store.fetch(torch.tensor([4]))[1].tolist() == [False]
    assert "Input/output error" in watched.reasons("lost")[4]
    monkeypatch.undo()
    assert present(store) == [i for i in range(20) if i != 4]


@pytest.mark.parametrize("what", ["write_at", "reserve", "fsync"])
def test_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The session goes on in RAM, dropping its oldest blocks, and uses the disk again once there is room."""
    watched = Watched(8, 100, folder)
    store = watched.filled(20)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if what == "fsync" else (disk, what)), full)
    for number in range(20, 60):
        assert store.append(numbered(number)) == number
        watched.check()
    ids = present(store)
    assert ids[-8:] == list(range(52, 60))
    troubles = [event for event in watched.events if event.kind == "unwritten"]
    assert len(troubles) == len({event.reason for event in troubles}) <= 2, "each trouble is told once"
    assert "No space left on device" in troubles[0].reason
    assert set(watched.reasons("dropped")) == set(range(60)) - set(ids)
    monkeypatch.undo()
    for number in range(60, 100):
        store.append(numbered(number))
    assert set(range(60, 100)) <= set(present(store))


def test_an_index_that_cannot_be_written(folder: Path) -> None:
    """Blocks are still spilled and read; only recovery would be of an older state, and an event says so once."""
    watched = Watched(4, 100, folder)
    store = watched.filled(10)
    index = watched.pool.journal.index
    assert index is not None
    index._db.close()
    for number in range(10, 40):
        store.append(numbered(number))
    assert present(store) == list(range(40))
    assert [event.kind for event in watched.events] == ["index"]
    watched.pool.close()


def test_files_are_private(folder: Path) -> None:
    watched = Watched(4, 100, folder)
    watched.filled(30)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert {"lock", "index.sqlite", "index.sqlite-wal"} <= set(modes)
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_index_says_what_the_headers_say(folder: Path) -> None:
    watched, places = spilled(folder)
    index = watched.pool.journal.index
    assert index is not None
    rows = sqlite3.connect(f"file:{folder / 'index.sqlite'}?mode=ro", uri=True).execute(
        "SELECT id, session, generation, file, slot, checksum FROM blocks"
    )
    for block, session, generation, file, slot, checksum in rows:
        found = bytes_at((folder / file, slot * SLOT))
        numbers = np.array([[0], [generation], [block]])
        assert found[:128] == header.pack(session, ["layer"], *numbers, BLOCK, np.array([np.void(checksum)])).tobytes()
        assert found[128:] == numbered(block).numpy().tobytes()
        assert (folder / file, slot * SLOT) == places[block]


@pytest.mark.parametrize("ram", [1, 7, 64])
@pytest.mark.parametrize("at_once", [1, 3 * SLOT, 1 << 20])
def test_many_blocks_in_one_request(
    folder: Path, ram: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Some in RAM, some on the disk, some twice, some damaged, some never there; more than RAM has room for."""
    monkeypatch.setattr(copies, "_AT_ONCE", at_once)
    together, read_all = list[int](), disk.Files.read_all

    def noted(self: disk.Files, slots: Any, expected: Any) -> Any:
        together.append(len(slots))
        return read_all(self, slots, expected)

    monkeypatch.setattr(disk.Files, "read_all", noted)
    watched = Watched(ram, 100, folder)
    store = watched.filled(90)
    [shelf] = watched.pool._shelves.values()
    below = [i for i in range(90) if shelf.is_below(store.table.get(i))]
    damaged = below[3::7]
    for index in damaged:
        name, row = shelf.file().name(int(shelf.records.disk[store.table.get(index)]))
        overwrite((folder / name, row * SLOT + 128), b"\xff\x01")
    ids = torch.tensor([(37 * i) % 90 for i in range(90)] + [5, 5, -1, 90, 88, 4, 5])
    wrong = {*damaged, -1, 90}
    for _ in range(2):
        together.clear()
        blocks, there = store.fetch(ids)
        assert len(together) <= 1 or at_once < 1 << 20, "what fits is read together"
        assert max(together, default=0) <= max(1, at_once // SLOT)
        assert there.tolist() == [i not in wrong for i in ids.tolist()]
        assert torch.equal(blocks[there], numbered(*ids[there].tolist()))
        assert not blocks[~there].any()
        watched.check()
    assert watched.reasons("lost") == dict.fromkeys(damaged, "its content does not have its checksum")
    kept = (shelf.records.ram >= 0) & (shelf.records.refs > 0)
    assert kept.sum() == ram
