"""Copying blocks out of a shelf: those in RAM, then those on the disk, all of a request in one pass.

A block is verified when it comes from the disk to RAM; there it stays as long as it is among the lately used ones, so
that the tokens of an answer, which mostly choose the same blocks, pay for it once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.memory.tiers.shelf import Shelf


def copy(shelf: Shelf, blocks: list[int], out: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Copy blocks (-1: none) to the rows of `out` [n, row_bytes] and remember that they were used.

    Returns [n], False for those that are lost; their rows are rubbish.
    """
    records, which = shelf.records, np.array(blocks, dtype=np.int64)
    known = which >= 0
    slots = np.where(known, records.ram[which], -1) if len(records.ram) else np.full(len(which), -1)
    present: NDArray[np.bool_] = slots >= 0
    records.used[which[present]] = shelf.journal.serial()
    shelf.slabs.copy(slots.tolist(), out)  # all that are in RAM, before the others push them out
    missing = (known & ~present).nonzero()[0].tolist()
    if missing:
        _bring(shelf, blocks, missing, out, present)
    return present


def _bring(
    shelf: Shelf, blocks: list[int], rows: list[int], out: NDArray[np.uint8], present: NDArray[np.bool_]
) -> None:  # fmt: skip
    """Read these rows from the disk, say which were, and keep what was read in RAM."""
    first: dict[int, int] = {}  # a block is read once
    for row in rows:
        first.setdefault(blocks[row], row)
    records = shelf.records
    for block, row in first.items():
        if not shelf.is_below(block):
            continue  # gone
        reason = shelf.file().read(int(records.disk[block]), shelf.header(block), out[row])
        present[row] = reason is None
        if reason is not None:
            shelf.drop([block], "lost", reason)
    read = [block for block, row in first.items() if present[row]]
    shelf.make_way(len(read))
    for block in read:
        slot = shelf.room(may_drop=False)
        if slot is None:
            break
        if records.disk[block] < 0:  # dropped while room was made
            shelf.slabs.give_back(slot)
            continue
        shelf.slabs.row(slot)[:] = out[first[block]]
        shelf.enter_ram(block, slot)
    for row in rows:
        source = first[blocks[row]]
        if row != source and present[source]:
            out[row], present[row] = out[source], True
