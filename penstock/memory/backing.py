"""What is behind the archives of a memory; apart from it, so that archives do not refer back to their memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.memory.cascade import Placement
from penstock.memory.losses import Losses


class Backing:
    """One pool of blocks, made when first needed, and what happened to them."""

    def __init__(self, cascades: Sequence[Placement]) -> None:
        self._cascades = cascades
        self._pool: Any = None
        self.losses = Losses()
        self.expected = 1  # archives that share the pool

    @property
    def is_made(self) -> bool:
        return self._pool is not None

    def pool(self) -> Any:
        """The pool."""
        if self._pool is None:
            from penstock.memory.tiers import Pool

            limits = [t for c in self._cascades for t in c.tiers]
            self._pool = Pool(**limits[0].options(), on_event=self.losses.note, expected=self.expected)
        return self._pool
