"""Bringing blocks from the disk to RAM while others use the shelf: reserve, read without the lock, put in place."""

from __future__ import annotations

from typing import NamedTuple

from penstock.memory.tiers.shelf import Shelf


class Load(NamedTuple):
    """A block on its way."""

    block: int
    ram: int  # reserved slot
    disk: int
    header: bytes


def loadable(shelf: Shelf) -> int:
    """Blocks that may be on their way at a time: half of the slots, so that there is always one to give up."""
    return shelf.ram_limit // shelf.row_bytes // 2


def start(shelf: Shelf, blocks: list[int]) -> list[Load]:
    """Reserve RAM for blocks that are on the disk only; under the lock."""
    out: list[Load] = []
    for block in dict.fromkeys(blocks):
        if len(shelf.loading) >= loadable(shelf):
            break
        if block in shelf.loading or not shelf.is_below(block):
            continue
        slot = shelf.room(may_drop=False)
        if slot is None:
            break
        disk = int(shelf.records.disk[block])
        if disk < 0:  # dropped while room was made
            shelf.slabs.give_back(slot)
            continue
        shelf.loading.add(block)
        out.append(Load(block, slot, disk, shelf.header(block)))
    return out


def read(shelf: Shelf, load: Load) -> str | None:
    """The reading itself, without the lock; the reason if it failed."""
    return shelf.file().read(load.disk, load.header, shelf.slabs.row(load.ram))


def finish(shelf: Shelf, load: Load, reason: str | None) -> None:
    """Put a loaded block in its place, unless it is there or gone by now; under the lock."""
    block, records = load.block, shelf.records
    shelf.loading.discard(block)
    wanted = records.refs[block] > 0 and records.ram[block] < 0 and records.disk[block] == load.disk
    if wanted and reason is None:
        shelf.enter_ram(block, load.ram)
        return
    shelf.slabs.give_back(load.ram)
    if wanted and reason is not None:
        shelf.drop([block], "lost", reason)
    if records.refs[block] == 0:
        shelf.forget(block)
