"""heavy-hitters: keep recent entries and those that got the most attention.  arXiv:2306.14048

Differs from the paper: choices are made where a unit of tokens ends, and a few first entries are sinks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from penstock.memory import Cascade
from penstock.memory.retention import HeavyHitters, beside_sinks
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class HeavyHitter(Method):
    """A yardstick: attention mass, summed over all queries since an entry arrived, decides what stays.

    `recent` is the share of the budget for the newest entries, `unit` how many tokens come between two choices.  A
    `decay` below 1 lets mass given long ago count less, so that old favourites can be overtaken (1 is the paper).
    """

    name: ClassVar[str] = "heavy-hitters"
    title: ClassVar[str] = "Recent entries and heavy hitters"
    source: ClassVar[str] = "arXiv:2306.14048"
    differs: ClassVar[str] = "chooses where a unit ends, per key-value head; sinks beside the heavy hitters"
    slots: ClassVar[tuple[str, ...]] = ("retention", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    sinks: int = 4
    recent: float = 0.5
    decay: float = 1.0
    unit: int = 16
    positions: Literal["contiguous", "stream"] = "contiguous"

    def cascade(self, budget: int | None) -> Cascade:
        make = partial(HeavyHitters, decay=self.decay)
        return beside_sinks(
            make, budget, sinks=self.sinks, recent=self.recent, unit=self.unit, positions=self.positions
        )
