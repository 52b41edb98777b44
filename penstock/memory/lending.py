"""Blocks where they lie in main memory, for readers that need no copy of them; and who may choose among blocks.

A store lends blocks for a moment: as long as the context lasts nothing moves them (tiers/store.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from penstock.memory.archive_layout import Layout
    from penstock.memory.block_index import BlockIndex, Limits
    from penstock.memory.retrieval import Selector


@dataclass(frozen=True)
class Lent:
    """Addresses of the bytes of blocks: [n], or [H, n] where each head has blocks of its own; `layout` says what is
    where in them."""

    addresses: NDArray[np.int64]
    layout: Layout

    def __len__(self) -> int:
        """Blocks of a head."""
        return int(self.addresses.shape[-1])


class Chooser(Protocol):
    """Who chooses among blocks faster than PyTorch: searches an index, says how much attention blocks would get."""

    def knows(self, selector: Selector, layout: Layout) -> bool:
        """Whether it can, for these summaries and blocks."""

    def shares(
        self, selector: Selector, layout: Layout, candidates: Sequence[Tensor | Lent], query: Tensor,
        table: Tensor | None, apart: bool,
    ) -> Tensor:  # fmt: skip
        """[C, m] float32, or [C, H, m] where heads choose `apart`: the shares of attention that scaled and projected
        queries [H, g, C, D'] would give all candidates, summed over the heads that choose together.  A candidate is
        summaries [n, H, r, D'], or blocks that are summed up where they lie."""

    def search(self, index: BlockIndex, query: Tensor, oldest: int, limits: Limits) -> Tensor:
        """[m] int64, sorted: as BlockIndex.search, of an index that has more blocks than are looked for."""


__all__ = ["Chooser", "Lent"]
