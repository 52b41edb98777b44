"""Coming down to limits that were lowered, because another store was opened or a session was recovered with less.

Blocks are moved, not dropped, as long as there are not more of them than the new limits allow.
"""

from __future__ import annotations

import numpy as np

from penstock.memory.tiers.disk import Files
from penstock.memory.tiers.shelf import Shelf


def shrink(shelf: Shelf) -> None:
    """Under the lock, while nothing is being loaded."""
    for line in list(shelf.held):
        shelf.limit_line(line, shelf.capacity, "the tiers became smaller")
    while shelf.slabs.nbytes > shelf.ram_limit:
        _empty_slab(shelf, shelf.slabs.retire())
    if shelf.files is not None:
        while (over := shelf.files.nbytes - shelf.disk_limit) > 0:
            _cut_file(shelf, shelf.files, -(-over // shelf.files.slot_bytes))


def _empty_slab(shelf: Shelf, slab: int) -> None:
    """Move the blocks of a retired slab to others, by the usual order of who has to go if there is no room."""
    for block in np.flatnonzero(shelf.records.ram >= 0).tolist():
        if not shelf.slabs.is_in(int(shelf.records.ram[block]), slab):
            continue
        while (slot := shelf.slabs.take(0)) is None and shelf.records.ram[block] >= 0:
            shelf.evict(may_drop=True)
        if slot is None:
            continue  # it was the one to go
        if shelf.records.ram[block] < 0:
            shelf.slabs.give_back(slot)
            continue
        old = int(shelf.records.ram[block])
        shelf.slabs.row(slot)[:] = shelf.slabs.row(old)
        shelf.records.ram[block] = slot
        shelf.slabs.give_back(old)


def _cut_file(shelf: Shelf, files: Files, count: int) -> None:
    """Free the last `count` slots of the newest file, or all that it has.

    A block that is moved is written and indexed at its new place before the old one is cut off.
    """
    number, gone = files.withdraw(count)
    content = np.empty(shelf.row_bytes, np.uint8)
    disk = shelf.records.disk
    for block in [b for b in np.flatnonzero(disk >= 0).tolist() if int(disk[b]) in gone]:
        slot = files.take(0)
        reason = (
            "the disk tier became smaller"
            if slot is None
            else files.read(int(disk[block]), shelf.header(block), content)
        )
        if slot is not None and reason is None:
            try:
                files.write([(slot, shelf.header(block), content)])
            except OSError as error:
                reason = f"it could not be moved ({error.strerror or error})"
        if slot is not None and reason is None:
            shelf.move(block, slot)
        elif shelf.records.ram[block] >= 0:
            shelf.leave_disk(block)
        else:
            shelf.drop([block], "lost", reason or "")
    shelf.journal.commit()
    files.cut(number, len(gone))
