"""How the limits of a pool are divided among its shelves, one per size of block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from penstock.errors import BudgetError
from penstock.memory.tiers import records
from penstock.memory.tiers.disk import slot_bytes

_FIRST = 16  # rows of tables that are there from the first block on
_TABLES = 0.75  # of the main memory that is left, for tables, where blocks can be on a disk


class Line(NamedTuple):
    """What the blocks of a store take of main memory."""

    row: int  # bytes of one block
    beside: int = 0  # bytes of tables per block, of the caller
    fixed: int = 0  # bytes of tables that do not grow, of the caller

    @property
    def table(self) -> float:
        """Bytes of all tables per block, those of the tiers included; 0 where the caller has none and counts none."""
        return self.beside + records.GROWN if self.beside or self.fixed else 0.0

    @property
    def least(self) -> int:
        """Bytes for one block."""
        return self.row + self.fixed + round(_FIRST * self.beside)


class Share(NamedTuple):
    """What a shelf gets."""

    lines: int  # lines of stores
    most: int  # blocks that there may be tables for
    ram: int  # bytes of blocks in main memory
    disk: int  # bytes of files
    tables: int  # bytes of tables that there is room for


Lines = Mapping[int, list[Line]]  # by size of block


def refuse(lines: Lines, ram: int, disk: int) -> None:
    """Raise BudgetError if a store could not hold one block."""
    need, need_disk = _needs(lines)
    if need > ram or 0 < disk < need_disk:
        tier, has, least = ("RAM", ram, need) if need > ram else ("disk", disk, need_disk)
        raise BudgetError(f"the {tier} tier has {has} bytes and one block per store takes {least}: give it more.")


def divide(lines: Lines, ram: int, disk: int, filed: bool) -> dict[int, Share]:
    """The share of each size; with files, blocks are counted by what the disk and the tables have room for.

    One block is held above the limit if need be, since tables that are there cannot be refused.
    """
    need, need_disk = _needs(lines)
    out = {}
    for size, mine in lines.items():
        count = max(1, len(mine))
        mine_disk = disk * slot_bytes(size) * len(mine) // max(1, need_disk)
        table = max((line.table for line in mine), default=0.0)
        fixed = sum(line.fixed for line in mine)
        room = max(0, int(ram * sum(line.least for line in mine) / max(1, need)) - fixed)
        if filed:
            known = int(_TABLES * room / table) if table else mine_disk
            most = max(count, min(mine_disk // slot_bytes(size), known))
            blocks = max(size, int(room - table * most))
        else:
            most = int(room // (size + table))
            blocks = max(count, most) * size
        out[size] = Share(count, most, blocks, mine_disk, fixed + int(table * most))
    return out


def _needs(lines: Lines) -> tuple[int, int]:
    """Bytes of main memory and of disk for one block of each store."""
    every = [line for mine in lines.values() for line in mine]
    return sum(line.least for line in every), sum(slot_bytes(line.row) for line in every)
