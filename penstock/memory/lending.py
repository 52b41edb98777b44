"""Blocks where they lie in main memory, for readers that need no copy of them.

A store lends blocks for a moment: as long as the context lasts nothing moves them (tiers/store.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from penstock.memory.archive_layout import Layout


@dataclass(frozen=True)
class Lent:
    """Addresses of the bytes of blocks: [n], or [H, n] where each head has blocks of its own; `layout` says what is
    where in them."""

    addresses: NDArray[np.int64]
    layout: Layout

    def __len__(self) -> int:
        """Blocks of a head."""
        return int(self.addresses.shape[-1])
