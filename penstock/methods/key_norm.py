"""key-norm: keep recent entries and those whose keys have the lowest norm.  arXiv:2406.11430

Differs from the paper: keeps sinks and a recent share, prunes every layer, and goes on for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from penstock.memory import Cascade
from penstock.memory.retention import LowestNorms, beside_sinks
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class KeyNorm(Method):
    """A yardstick that needs no queries: keys of low norm tend to be those that get attention.

    `recent` is the share of the budget for the newest entries, `unit` how many tokens come between two choices.
    """

    name: ClassVar[str] = "key-norm"
    title: ClassVar[str] = "Recent entries and keys of lowest norm"
    source: ClassVar[str] = "arXiv:2406.11430"
    differs: ClassVar[str] = "on a stream, with sinks and a recent share; no layer is left out"
    slots: ClassVar[tuple[str, ...]] = ("retention", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    sinks: int = 4
    recent: float = 0.5
    unit: int = 16
    positions: Literal["contiguous", "stream"] = "contiguous"

    def cascade(self, budget: int | None) -> Cascade:
        return beside_sinks(
            LowestNorms, budget, sinks=self.sinks, recent=self.recent, unit=self.unit, positions=self.positions
        )
