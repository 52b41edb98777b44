"""random: keep recent entries and a uniform sample of all others.  The yardstick of every choice by score.

Not from a paper: a bottom-k sample by a hash of the index, so that each old token is kept with equal chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from penstock.memory import Cascade
from penstock.memory.retention import Sample, beside_sinks
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class Random(Method):
    """What retention costs when the choice knows nothing: the same tokens stay in all layers and heads.

    `recent` is the share of the budget for the newest entries; another `seed` is another sample.
    """

    name: ClassVar[str] = "random"
    title: ClassVar[str] = "Recent entries and a uniform sample of the past"
    source: ClassVar[str] = "a yardstick: bottom-k sampling by a hash of the index"
    differs: ClassVar[str] = "no paper: the choice that a score must beat"
    slots: ClassVar[tuple[str, ...]] = ("retention", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    seed: int = 0
    sinks: int = 4
    recent: float = 0.5
    unit: int = 16
    positions: Literal["contiguous", "stream"] = "contiguous"

    def cascade(self, budget: int | None) -> Cascade:
        make = partial(Sample, seed=self.seed)
        return beside_sinks(
            make, budget, sinks=self.sinks, recent=self.recent, unit=self.unit, positions=self.positions
        )
