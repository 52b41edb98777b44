"""duo-attention: retrieval heads keep the budget, all other heads sinks and a short window.  arXiv:2410.10819

Differs from the paper: retrieval heads are bounded too (a budget that no stream reaches is the paper); windows move by
units of up to 64 tokens, so that the result does not depend on chunk sizes; sinks keep their distance (clamped).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Geometry, Heads, Placement, Sinks, Window
from penstock.memory.placement import choose, split
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class DuoAttention(Method):
    """A long memory for the heads that look things up, a short one for the others.

    `retrieval` is the share of key-value heads that keep `budget` entries; the others keep `sinks` first entries and
    the newest `window` (at most 1/16 and 1/4 of the budget).  `heads` says which: a list (0.1+2.3), a file of gates, or
    nothing for the gates of the shipped model.  Another model without a file has its heads chosen evenly: measure them
    with `penstock inspect MODEL --json > heads.json`.  `positions`: with `stream` the sinks' distance grows, as in the
    paper.
    """

    name: ClassVar[str] = "duo-attention"
    title: ClassVar[str] = "A long memory for retrieval heads, sinks and a short window for the others"
    source: ClassVar[str] = "arXiv:2410.10819"
    differs: ClassVar[str] = "retrieval heads are bounded too; windows move by units; the sinks' distance is clamped"
    slots: ClassVar[tuple[str, ...]] = ("placement", "segments", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    retrieval: float = 0.5
    sinks: int = 64
    window: int = 256
    heads: str = ""
    positions: Literal["clamped", "stream"] = "clamped"

    def __post_init__(self) -> None:
        if not 0.0 <= self.retrieval <= 1.0:
            raise UsageError(f"retrieval cannot be {self.retrieval}: give a share of the heads from 0 to 1.")
        if self.sinks < 0 or self.window < 1:
            raise BudgetError(f"{self.sinks} sinks and a window of {self.window} cannot be: give 0 or more, 1 or more.")

    def lossless(self) -> DuoAttention:
        """Every head is a retrieval head."""
        return dataclasses.replace(self, retrieval=1.0, heads="")

    def cascade(self, budget: int | None) -> Cascade:
        """What a retrieval head keeps."""
        return self._kept(_sizes(self, budget)[0], budget or 0, 1)

    def streaming(self, budget: int | None) -> Cascade:
        """What any other head keeps."""
        sinks, window, _ = _sizes(self, budget)
        return self._kept(sinks, sinks + window, 1)

    def _kept(self, sinks: int, entries: int, unit: int) -> Cascade:
        """Sinks and a window of so many entries, the unit in which it moves included; 1 is token by token."""
        tail = unit if unit > 1 else 0
        segments = (Sinks(sinks), Window(entries - sinks - tail)) if sinks else (Window(entries - tail),)
        return Cascade(segments, self.positions, unit)

    def cascades(self, geometry: Geometry, budget: int | None) -> tuple[Placement, ...]:
        sinks, window, unit = _sizes(self, budget)
        assert budget is not None
        chosen = choose(self.heads, geometry, ("heads", "copy"), share=self.retrieval)
        out: list[Placement] = []
        for i, layer in enumerate(geometry.layers):
            full, streaming = split(chosen, i, layer.kv_heads)
            if layer.window is not None:
                out.append(self.cascade(budget).limited_to(layer.window))
            elif full and streaming:
                pair = (self._kept(sinks, budget, unit), self._kept(sinks, sinks + window, unit))
                out.append(Heads(((full, pair[0]), (streaming, pair[1]))))
            else:
                out.append(self.cascade(budget) if full else self.streaming(budget))
        return tuple(out)


def _sizes(method: DuoAttention, budget: int | None) -> tuple[int, int, int]:
    """(sinks, window of a streaming head, unit in which windows move)."""
    if budget is None:
        raise BudgetError("duo-attention needs a budget: give entries (4096) or bytes (64MiB).")
    unit = 4
    while unit < 64 and unit * 32 <= budget:
        unit *= 2
    sinks, window = min(method.sinks, budget // 16), max(min(method.window, budget // 4), unit + 1)
    if budget < sinks + window:
        raise BudgetError(f"a budget of {budget} is too small for duo-attention: give at least {unit + 1}.")
    return sinks, window, unit
