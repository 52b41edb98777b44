"""What a faster choice among the blocks of archives offers; PyTorch's is archive_choice.py with block_index.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from penstock.memory.lending import Lent

if TYPE_CHECKING:
    from penstock.memory.archive_layout import Layout
    from penstock.memory.block_index import BlockIndex, Limits
    from penstock.memory.retrieval import Selector


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
