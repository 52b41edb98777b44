"""flux-attention: some layers keep the budget, all others sinks and a window.  arXiv:2604.07394

Differs from the paper: the choice of layers is a map, trained or measured beforehand, not a router that reads each
prompt: a stream has no prompt, and a layer that was sparse cannot become full again.  Sparse layers really hold less.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Geometry, Sinks, Window
from penstock.memory.placement import choose
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class FluxAttention(Method):
    """Full layers and sparse layers.

    `full` is the share of layers that keep `budget` entries; the others keep `sinks` first entries and the newest
    `window` (at most 1/16 and 1/4 of the budget).  `layers` says which: a list (0+2), a file of gates, or nothing for
    the map of the shipped model; the layers of another model then alternate.  `positions` as in streaming-llm.
    """

    name: ClassVar[str] = "flux-attention"
    title: ClassVar[str] = "Each layer full or sparse"
    source: ClassVar[str] = "arXiv:2604.07394"
    differs: ClassVar[str] = "a layer map made beforehand instead of a router per prompt; full layers are bounded too"
    slots: ClassVar[tuple[str, ...]] = ("placement", "segments", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    full: float = 0.5
    sinks: int = 128
    window: int = 2048
    layers: str = ""
    positions: Literal["clamped", "contiguous", "stream"] = "clamped"

    def __post_init__(self) -> None:
        if not 0.0 <= self.full <= 1.0:
            raise UsageError(f"full cannot be {self.full}: give a share of the layers from 0 to 1.")
        if self.sinks < 0 or self.window < 1:
            raise BudgetError(f"{self.sinks} sinks and a window of {self.window} cannot be: give 0 or more, 1 or more.")

    def lossless(self) -> FluxAttention:
        """Every layer is full."""
        return dataclasses.replace(self, full=1.0, layers="")

    def cascade(self, budget: int | None) -> Cascade:
        """What a full layer keeps."""
        sinks, _ = self._sizes(budget)
        assert budget is not None
        return Cascade((Sinks(sinks), Window(budget - sinks)), self.positions)

    def sparse(self, budget: int | None) -> Cascade:
        """What a sparse layer keeps."""
        sinks, window = self._sizes(budget)
        return Cascade((Sinks(sinks), Window(window)), self.positions)

    def _sizes(self, budget: int | None) -> tuple[int, int]:
        if budget is None:
            raise BudgetError("flux-attention needs a budget: give entries (4096) or bytes (64MiB).")
        sinks, window = min(self.sinks, budget // 16), min(self.window, budget // 4)
        if window < 1:
            raise BudgetError(f"a budget of {budget} leaves sparse layers no window: give at least 4.")
        return sinks, window

    def cascades(self, geometry: Geometry, budget: int | None) -> tuple[Cascade, ...]:
        chosen = choose(self.layers, geometry, ("layers", "copy"), share=self.full, whole=True)
        full, sparse = self.cascade(budget), self.sparse(budget)
        return tuple(
            full.limited_to(layer.window) if layer.window is not None else full if (i, 0) in chosen else sparse
            for i, layer in enumerate(geometry.layers)
        )
