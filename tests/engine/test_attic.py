"""Rows that are kept outside the device: exact bytes, spilled oldest first, shared by forks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from penstock.engine.attic import Attic
from penstock.errors import MemoryStateError, OutputError, SnapshotError


def row(value: float) -> dict[str, torch.Tensor]:
    return {"0.0.window": torch.full((2, 8), value), "0.sink": torch.full((3,), value)}


SIZE = (16 + 3) * 4


def test_bytes_are_those_of_the_storages() -> None:
    attic = Attic(1000, None)
    view = torch.zeros(100, 8)[:2]
    kept = attic.put({"a": view}, 1)
    assert kept.nbytes == attic.ram_bytes == 2 * 8 * 4, "a view does not keep what it is a view of"
    attic.check([kept])
    attic.drop(kept)
    assert attic.ram_bytes == 0
    attic.check([])


def test_the_oldest_goes_to_disk_and_comes_back_equal(tmp_path: Path) -> None:
    attic = Attic(2 * SIZE, tmp_path)
    kept = [attic.put(row(float(i)), i) for i in range(4)]
    assert [k.path is not None for k in kept] == [True, True, False, False]
    assert attic.ram_bytes == 2 * SIZE
    assert attic.disk_bytes == sum(path.stat().st_size for path in tmp_path.iterdir()) > 0
    attic.check(kept)
    for i, k in enumerate(kept):
        assert all(torch.equal(t, row(float(i))[name]) for name, t in attic.read(k).items())
        attic.drop(k)
    attic.check([])
    assert not list(tmp_path.iterdir())
    assert attic.disk_bytes == 0


def test_a_shared_row_goes_with_its_last_owner() -> None:
    attic = Attic(1000, None)
    kept = attic.share(attic.put(row(1.0), 1))
    attic.check([kept, kept])
    attic.drop(kept)
    assert attic.ram_bytes == SIZE
    with pytest.raises(MemoryStateError, match="owned"):
        attic.check([kept, kept])
    attic.drop(kept)
    assert attic.ram_bytes == 0


def test_without_a_folder_more_is_kept_and_counted() -> None:
    attic = Attic(SIZE, None)
    attic.put(row(1.0), 1)
    attic.put(row(2.0), 1)
    assert attic.ram_bytes == 2 * SIZE
    assert attic.over == 1


def test_a_folder_that_takes_nothing_loses_nothing(tmp_path: Path) -> None:
    attic = Attic(SIZE, tmp_path / "gone")
    attic.put(row(1.0), 1)
    with pytest.raises(OutputError, match="free space"):
        attic.put(row(2.0), 1)
    assert attic.ram_bytes == 2 * SIZE


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    attic = Attic(0, tmp_path)
    kept = attic.put(row(1.0), 1)
    assert kept.path is not None
    kept.path.write_bytes(b"no")
    with pytest.raises(SnapshotError, match="cannot be read"):
        attic.read(kept)
    with pytest.raises(MemoryStateError):
        attic.check([kept])
