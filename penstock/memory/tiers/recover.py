"""Bring back what a session left on the disk.

The index says which blocks there should be; each is verified when it is read, like any other.  What is in the files
but not in the index was never acknowledged, or was rolled back, and its place is free.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from penstock.errors import SnapshotError
from penstock.memory.tiers.folder import Folder
from penstock.memory.tiers.index import BlockRow, StoreRow
from penstock.memory.tiers.journal import TierEvent
from penstock.memory.tiers.pool import Pool
from penstock.memory.tiers.shelf import Shelf
from penstock.memory.tiers.store import BlockStore


def recover(
    path: Path, *, session: str, generation: int | None, ram: int | None, disk: int | None, durable: bool | None,
    patience: float | None, on_event: Callable[[TierEvent], None] | None,
) -> Pool:  # fmt: skip
    """See `Pool.recover`."""
    folder, found = Folder.existing(path, session, generation)
    meta: dict[str, Any] = dict(found)
    pool = None
    try:
        stores, blocks = folder.index.stores(), folder.index.blocks()
        meta["generation"] += 1
        for name, given in (("ram", ram), ("disk", disk), ("durable", durable)):
            meta[name] = meta[name] if given is None else given
        del meta["format"]
        pool = Pool(
            meta["ram"], meta["disk"], path, session=session, generation=meta["generation"], durable=meta["durable"],
            patience=patience, on_event=on_event, _folder=folder,
        )  # fmt: skip
        _fill(pool, stores, blocks)
        folder.index.describe(meta)  # from here on, the older generation is refused
    except BaseException as error:
        if pool is None:
            folder.close(delete=False)
        else:
            pool.close(keep=True)
        if isinstance(error, (sqlite3.Error, KeyError, TypeError, AttributeError, ValueError)):
            raise SnapshotError(f"the index in {path} is damaged ({error}): start with another folder.") from None
        raise
    pool.journal.deliver()
    return pool


def _fill(pool: Pool, stores: list[StoreRow], blocks: list[BlockRow]) -> None:
    by_store: dict[int, dict[int, BlockRow]] = {row.store: {} for row in stores}
    newest = {(block.file, block.slot): block.birth for block in blocks}  # a place belongs to whoever wrote it last
    for block in blocks:
        if newest[block.file, block.slot] != block.birth:
            continue
        if block.store in by_store and block.session == pool.session and block.generation < pool.generation:
            by_store[block.store][block.id] = block
    pool.journal.serial(at_least=max((block.birth for block in blocks), default=0) + 1)
    for size in dict.fromkeys(_row_bytes(row) for row in stores):
        shelf = pool.shelf(size)
        assert shelf.files is not None
        shelf.files.adopt()
    for row in stores:
        shelf = pool.shelf(_row_bytes(row))
        store = pool.enter(row.label, row.shape, getattr(torch, row.dtype), row.store)
        store.recovered = True
        lost = _fill_store(shelf, store, row, by_store[row.store])
        if lost:
            pool.journal.report("lost", [(store.home, i) for i in lost], "its place in the files is gone")
    for size in dict.fromkeys(_row_bytes(row) for row in stores):
        pool.shelf(size).settle()
    pool.share()


def _fill_store(shelf: Shelf, store: BlockStore, row: StoreRow, blocks: dict[int, BlockRow]) -> list[int]:
    """Number the blocks as they were; returns the ids of those that had a place and have none any more."""
    lost = []
    for index in range(row.length):
        block = blocks.get(index)
        number = -1
        if block is not None:
            number = shelf.adopt(block, store.home, store.line)
            if number < 0:
                lost.append(index)
        store.table.append(number)
    return lost


def _row_bytes(row: StoreRow) -> int:
    return math.prod(row.shape) * int(getattr(torch, row.dtype).itemsize)
