"""Copying blocks out of a shelf: those in RAM, then those on the disk, all of a request in one pass.

A block is verified when it comes from the disk to RAM; there it stays as long as it is among the lately used ones, so
that the tokens of an answer, which mostly choose the same blocks, pay for it once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.memory.tiers.ram import Row
from penstock.memory.tiers.shelf import Shelf


def copy(shelf: Shelf, blocks: list[int], out: NDArray[np.uint8], part: slice) -> NDArray[np.bool_]:
    """Copy these bytes of blocks (-1: none) to the rows of `out` [n, bytes] and remember that the blocks were used.

    Returns [n], False for those that are lost; their rows are rubbish.
    """
    records, which = shelf.records, np.array(blocks, dtype=np.int64)
    known = which >= 0
    slots = np.where(known, records.ram[which], -1) if len(records.ram) else np.full(len(which), -1)
    present: NDArray[np.bool_] = slots >= 0
    records.used[which[present]] = shelf.journal.serial()
    shelf.slabs.copy(slots.tolist(), out, part)  # all that are in RAM, before the others push them out
    missing = (known & ~present).nonzero()[0].tolist()
    if missing:
        _bring(shelf, blocks, missing, out, part, present)
    return present


def _bring(
    shelf: Shelf, blocks: list[int], rows: list[int], out: NDArray[np.uint8], part: slice, present: NDArray[np.bool_]
) -> None:  # fmt: skip
    """Read these rows from the disk to RAM, and copy them if they are what they should be."""
    first: dict[int, int] = {}  # a block is read once
    for row in rows:
        first.setdefault(blocks[row], row)
    read = [block for block in first if shelf.is_below(block)]  # the others are gone
    shelf.make_way(len(read))
    for block in read:
        row = first[block]
        present[row] = _read(shelf, block, out[row], part)
    for row in rows:
        source = first[blocks[row]]
        if row != source and present[source]:
            out[row], present[row] = out[source], True


def _read(shelf: Shelf, block: int, out: Row, part: slice) -> bool:
    """Read one block, into a slot of RAM if there is one; False if it is lost."""
    slot = shelf.room(may_drop=False)
    place = np.empty(shelf.row_bytes, dtype=np.uint8) if slot is None else shelf.slabs.row(slot)
    disk = int(shelf.records.disk[block])
    reason = shelf.file().read(disk, shelf.header(block), place) if disk >= 0 else ""  # dropped while room was made
    if reason is None:
        out[:] = place[part]
        if slot is not None:
            shelf.enter_ram(block, slot)
        return True
    if slot is not None:
        shelf.slabs.give_back(slot)
    if reason:
        shelf.drop([block], "lost", reason)
    return False
