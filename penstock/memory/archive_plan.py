"""How a budget is divided among sinks, a window and what is retrieved from an archive."""

from __future__ import annotations

from typing import NamedTuple

from penstock.core import parse_size
from penstock.errors import BudgetError, UsageError
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


def tiers(ram: str, disk: str, folder: str) -> Tiers:
    """Limits as options give them: sizes as text, an empty one is none."""
    return Tiers(parse_size(ram), parse_size(disk) if disk else 0, folder)
