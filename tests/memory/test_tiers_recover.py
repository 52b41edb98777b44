"""What survives: kill -9, another process, another session."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from penstock.errors import BudgetError, SnapshotError
from penstock.memory.tiers import Pool, disk

from .tiers import BLOCK, SHAPE, SLOT, Watched, numbered, present

WRITER = """
import sys, torch
from pathlib import Path
from penstock.memory.tiers import Pool
from tests.memory.tiers import BLOCK, SHAPE, SLOT, numbered
pool = Pool(4 * BLOCK, 500 * SLOT, Path(sys.argv[1]), session="s", durable=True)
stores = [pool.open(SHAPE, torch.float32, f"layer {i}") for i in range(2)]
for number in range(10_000):
    for which, store in enumerate(stores):
        store.append(numbered(number + 5000 * which))
        print(which, number, flush=True)
    if number == 20:
        stores[0].fork(10).append(numbered(-1))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blocks"


def recovered(folder: Path, **options: object) -> Watched:
    watched = Watched(1)
    options = {"session": "s", "on_event": watched.events.append, **options}
    watched.pool = Pool.recover(folder, **options)  # type: ignore[arg-type]
    watched.ram, watched.disk = watched.pool.ram // BLOCK, watched.pool.disk // SLOT
    return watched


def test_acknowledged_blocks_survive_a_kill(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(61)]
        os.kill(child.pid, signal.SIGKILL)
        lines += child.stdout.readlines()
    acknowledged = [max((int(n) for w, n in map(str.split, lines) if int(w) == which), default=-1) for which in (0, 1)]
    watched = recovered(folder)
    assert set(watched.pool.stores) == {"layer 0", "layer 1"}
    for which, last in enumerate(acknowledged):
        store = watched.pool.open(SHAPE, torch.float32, f"layer {which}")
        assert len(store) in (last + 1, last + 2)  # one more may be on the disk without having been told
        blocks, there = store.fetch(torch.arange(last + 1))
        assert there.all()
        assert torch.equal(blocks, numbered(*(5000 * which + n for n in range(last + 1))))
    assert watched.events == []


def test_a_spill_survives_as_far_as_it_was_written(folder: Path) -> None:
    watched = Watched(8, 100, folder)
    watched.filled(40)
    watched.pool.close(keep=True)
    watched = recovered(folder)
    store = watched.open()
    assert len(store) >= 32
    ids = present(store)
    assert ids == list(range(len(ids)))
    assert len(ids) >= 32


def test_flush_makes_a_spill_whole(folder: Path) -> None:
    watched = Watched(8, 100, folder)
    watched.filled(40)
    assert watched.pool.flush()
    watched.pool.close(keep=True)
    assert present(recovered(folder).open()) == list(range(40))


def test_a_recovered_session_goes_on(folder: Path) -> None:
    """Across three generations: append, roll back, recover."""
    watched = Watched(4, 100, folder, durable=True)
    store = watched.filled(30)
    store.truncate(20)
    store.append(numbered(20, 21))
    watched.pool.close()
    for generation in (1, 2):
        watched = recovered(folder, generation=generation - 1)
        assert watched.pool.generation == generation
        assert watched.pool.durable
        store = watched.open()
        count = len(store)
        assert present(store) == list(range(count))
        store.truncate(count - 1)
        for number in range(count - 1, count + 5):
            store.append(numbered(number))
            watched.check()
        watched.pool.close()
    store = recovered(folder).open()
    assert present(store) == list(range(32))


def test_a_rollback_is_not_undone_by_a_crash(folder: Path, tmp_path: Path) -> None:
    watched = Watched(4, 100, folder, durable=True)
    store = watched.filled(30)
    fork = store.fork(30)  # still holds what the original gives up
    store.truncate(12)
    shutil.copytree(folder, tmp_path / "crashed")
    assert present(recovered(tmp_path / "crashed").open()) == list(range(12))
    store.append(numbered(*range(12, 15)))
    shutil.copytree(folder, tmp_path / "crashed again")
    assert present(recovered(tmp_path / "crashed again").open()) == list(range(15))
    assert present(fork) == list(range(30))


def test_closed_stores_are_not_recovered(folder: Path) -> None:
    watched = Watched(4, 100, folder, durable=True)
    watched.filled(10, "one").close()
    watched.filled(10, "two")
    watched.pool.close()
    assert set(recovered(folder).pool.stores) == {"two"}


def test_damage_found_after_recovery(folder: Path) -> None:
    watched = Watched(4, 200, folder, durable=True)
    watched.filled(100)
    watched.pool.close()
    first, second, *_ = sorted(folder.glob("*.blocks"))
    first.unlink()
    data = bytearray(second.read_bytes())
    data[200] ^= 1
    second.write_bytes(data)
    watched = recovered(folder)
    store = watched.open()
    ids = present(store)
    lost = watched.reasons("lost")
    assert set(ids) | set(lost) == set(range(100))
    assert not set(ids) & set(lost)
    assert {"its place in the files is gone", "its content does not have its checksum"} == set(lost.values())
    assert store.oldest == ids[0]


def test_files_of_an_older_state_are_not_believed(folder: Path, tmp_path: Path) -> None:
    """A backup of the files under a newer index: places that were written again since are lost."""
    watched = Watched(4, 40, folder, durable=True)
    store = watched.filled(30)
    backup = {path: path.read_bytes() for path in folder.glob("*.blocks")}
    store.truncate(10)
    store.append(numbered(*range(10, 30)) + 0.001)
    watched.pool.close()
    for path, data in backup.items():
        path.write_bytes(data)
    watched = recovered(folder)
    blocks, there = watched.open().fetch(torch.arange(30))
    new = torch.cat([numbered(*range(10)), numbered(*range(10, 30)) + 0.001])
    assert torch.equal(blocks[there], new[there])
    assert there[:10].all()
    assert not there[10:].all()


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    watched = Watched(4, 100, folder, durable=True)
    watched.filled(10)
    with pytest.raises(SnapshotError, match="in use"):
        recovered(folder)
    watched.pool.close()
    with pytest.raises(SnapshotError, match="another session"):
        Pool.recover(folder, session="other")
    with pytest.raises(SnapshotError, match="earlier session"):
        Watched(4, 100, folder)
    with pytest.raises(SnapshotError, match="generation 0 and not at 3"):
        recovered(folder, generation=3)
    recovered(folder, generation=0).pool.close()
    with pytest.raises(SnapshotError, match="generation 1 and not at 0"):
        recovered(folder, generation=0)
    with pytest.raises(SnapshotError, match="no blocks"):
        recovered(tmp_path / "nowhere")
    with pytest.raises(BudgetError, match="one block per store"):
        recovered(folder, ram=BLOCK - 1)
    assert present(recovered(folder, generation=1).open()) == list(range(10))


@pytest.mark.parametrize("damage", [b"", b"rubbish" * 1000])
def test_a_damaged_index_is_refused(folder: Path, damage: bytes) -> None:
    watched = Watched(4, 100, folder, durable=True)
    watched.filled(10)
    watched.pool.close()
    for path in folder.glob("index*"):
        path.write_bytes(damage)
    with pytest.raises(SnapshotError, match="damaged"):
        recovered(folder)


def test_smaller_limits_after_recovery(folder: Path) -> None:
    watched = Watched(4, 300, folder, durable=True)
    watched.filled(250)
    watched.pool.close()
    watched = recovered(folder, disk=100 * SLOT)
    watched.check()
    ids = present(watched.open())
    assert ids[-1] == 249
    assert len(ids) <= 100


def test_what_is_not_on_the_disk_is_not_called_durable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(10, 100, folder, durable=True)
    store = watched.filled(5)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write_at", full)
    store.append(numbered(5, 6))
    assert set(watched.reasons("undurable")) == {5, 6}
    assert present(store) == list(range(7))
    monkeypatch.undo()
    assert watched.pool.flush()
    watched.pool.close()
    assert present(recovered(folder).open()) == list(range(7))


def test_a_folder_in_which_nothing_can_be_recovered_is_taken_over(folder: Path, tmp_path: Path) -> None:
    """Blocks of forks end with their process; those of a store that was opened do not, and are left alone."""
    watched = Watched(4, 40, folder)
    root = watched.open()
    fork = root.fork()
    for number in range(20):
        fork.append(numbered(number))
    shutil.copytree(folder, tmp_path / "killed with a store")
    root.close()
    shutil.copytree(folder, tmp_path / "killed")
    assert list((tmp_path / "killed").glob("*.blocks"))
    with pytest.raises(SnapshotError, match="recover that one"):
        Watched(4, 40, tmp_path / "killed with a store")
    with pytest.raises(SnapshotError, match="in use"):
        Watched(4, 40, folder)
    other = Watched(4, 40, tmp_path / "killed")
    assert not list((tmp_path / "killed").glob("*.blocks"))
    assert present(other.filled(20)) == list(range(20))
    assert present(fork) == list(range(20))
