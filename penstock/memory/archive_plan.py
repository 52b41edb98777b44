"""How a budget is divided among sinks, a window and what is retrieved, and what tiers an archive needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from penstock.core import parse_size
from penstock.errors import BudgetError, UsageError
from penstock.memory.flow import Branch
from penstock.memory.tiers import Tiers


class Shares(NamedTuple):
    """Entries that a query reads: sinks + window + slots * block + (block - 1 pending) + unit = the budget."""

    sinks: int
    window: int
    slots: int
    block: int
    unit: int


def divide(name: str, budget: int | None, block: int, sinks: float, retrieved: float) -> Shares:
    """`sinks` and `retrieved` are shares of the budget.

    Blocks and units are powers of two, at most a sixteenth of the budget; units are as large as that allows, up to 64,
    since the memory moves once per unit.
    """
    if budget is None:
        raise BudgetError(f"{name} needs a budget: give entries (4096) or bytes (64MiB).")
    size, unit = _power(min(block, budget // 16)), _power(min(64, budget // 16))
    first = max(1, int(sinks * budget)) if sinks else 0
    if not 0 < retrieved < 1:
        raise UsageError(f"{name} cannot retrieve a share of {retrieved} of the budget: give one between 0 and 1.")
    room = budget - first - (size - 1) - unit - 1  # for blocks and a window of one at least
    slots = max(1, min(int(retrieved * budget), room) // size)
    window = budget - first - slots * size - (size - 1) - unit
    if window < 1 or block < size:
        raise BudgetError(
            f"a budget of {budget} cannot hold a window and {slots} retrieved blocks of {size}: give at least 24, "
            f"and blocks of 4 or more ({name}:block=N)."
        )
    return Shares(first, window, slots, size, unit)


def _power(most: int) -> int:
    """The largest power of two up to `most`, but at least 4."""
    return max(4, 1 << max(0, most.bit_length() - 1))


def refuse_small_tiers(branches: Sequence[Branch], rows: int) -> int:
    """How many archives share the tiers of a memory, all rows together.

    Raises BudgetError, with sizes that will do, if they have no room for so many.
    """
    found = [(s, s.least(b.place)) for b in branches for s in b.cascade.segments if any(s.least(b.place))]
    limits = next((t for b in branches for t in b.cascade.tiers), None)
    if limits is None or not found:
        return 1
    ram, disk = (rows * sum(least[i] for _, least in found) for i in (0, 1))
    many = f"the {rows * len(found)} archives of this memory ({len(found)} per stream)"
    if limits.ram < ram:
        raise BudgetError(f"{limits.ram} bytes of main memory are too few for {many}: give ram={_said(ram)} or more.")
    if 0 < limits.disk < disk:
        raise BudgetError(f"{limits.disk} bytes of disk are too few for {many}: give disk={_said(disk)} or more.")
    return rows * len(found)


def _said(size: int) -> str:
    """A size as an option takes it, rounded up."""
    return f"{-(-size // (1 << 20))}MiB" if size > 1 << 20 else f"{-(-size // (1 << 10))}KiB"


def tiers(ram: str, disk: str, folder: str) -> Tiers:
    """Limits as options give them: sizes as text, an empty one is none."""
    return Tiers(parse_size(ram), parse_size(disk) if disk else 0, folder)
