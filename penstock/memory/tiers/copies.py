"""Copying blocks out of a shelf: those in RAM, then those on the disk, all of a request in one pass.

A block is verified when it comes from the disk to RAM; there it stays as long as it is among the lately used ones, so
that the tokens of an answer, which mostly choose the same blocks, pay for it once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.memory.tiers.loads import loadable
from penstock.memory.tiers.shelf import Shelf
from penstock.memory.tiers.table import Ids

_AT_ONCE = 1 << 20  # bytes read from the disk before they are looked at


def copy(shelf: Shelf, blocks: Ids, out: NDArray[np.uint8], part: slice) -> NDArray[np.bool_]:
    """Copy these bytes of blocks (-1: none) to the rows of `out` [n, bytes] and remember that the blocks were used.

    Returns [n], False for those that are lost; their rows are rubbish.
    """
    records, which = shelf.records, blocks
    known = which >= 0
    slots = np.where(known, records.ram[which], -1) if len(records.ram) else np.full(len(which), -1)
    present: NDArray[np.bool_] = slots >= 0
    records.used[which[present]] = shelf.journal.serial()
    shelf.slabs.copy(slots[present], out, present.nonzero()[0], part)  # before the others push them out
    missing = (known & ~present).nonzero()[0]
    missing = missing[records.disk[which[missing]] >= 0]  # the others are gone
    if len(missing):
        _bring(shelf, which, missing, out, part, present)
    return present


def addresses(shelf: Shelf, blocks: Ids, *, patient: bool) -> NDArray[np.int64] | None:
    """Where these blocks lie in RAM; those on the disk are brought there first if the caller is `patient`.

    None if they are not all there then.
    """
    records, which = shelf.records, blocks
    if not len(which) or which.min() < 0:
        return None
    below = which[records.ram[which] < 0]
    if len(below):
        below = np.unique(below)
        if not patient or len(below) > loadable(shelf) or (records.disk[below] < 0).any():
            return None
        records.used[which] = shelf.journal.serial()  # those that are there stay
        step = max(1, _AT_ONCE // shelf.file().slot_bytes)
        for first in range(0, len(below), step):
            read(shelf, below[first : first + step])
        if (records.ram[which] < 0).any():
            return None
    records.used[which] = shelf.journal.serial()
    return shelf.slabs.addresses(records.ram[which])


def _bring(
    shelf: Shelf, blocks: Ids, rows: Ids, out: NDArray[np.uint8], part: slice, present: NDArray[np.bool_]
) -> None:  # fmt: skip
    """Read the blocks of these rows from the disk to RAM, and copy those that are what they should be."""
    wanted, inverse = np.unique(blocks[rows], return_inverse=True)  # a block is read once
    step, whole = max(1, _AT_ONCE // shelf.file().slot_bytes), np.zeros(len(wanted), dtype=np.bool_)
    for first in range(0, len(wanted), step):
        some = slice(first, first + step)
        content, whole[some] = read(shelf, wanted[some])
        here = (inverse >= first) & (inverse < first + step) & whole[inverse]
        out[rows[here]] = content[inverse[here] - first, part]
    present[rows] = whole[inverse]


def read(shelf: Shelf, blocks: Ids) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(content [n, bytes], whole [n]) of different blocks that are not in RAM; they enter it, as far as there is room.

    Those that are not what they should be are lost, and said to be.
    """
    content, reasons = shelf.file().read_all(shelf.records.disk[blocks], shelf.headers(blocks))
    whole = np.ones(len(blocks), dtype=np.bool_)
    whole[list(reasons)] = False
    for i, reason in reasons.items():
        if shelf.records.disk[blocks[i]] >= 0:  # else it was dropped, and that was said
            shelf.drop([int(blocks[i])], "lost", reason)
    slots = shelf.rooms(int(whole.sum()))
    entering = (whole & (shelf.records.disk[blocks] >= 0)).nonzero()[0][: len(slots)]  # or dropped while room was made
    shelf.take_in(blocks[entering], slots[: len(entering)], content[entering])
    for slot in slots[len(entering) :]:
        shelf.slabs.give_back(slot)
    return content, whole
