"""k-sort: block floating point, with the channels of keys sorted by size.  arXiv:2403.20137

Differs from the paper: sorted by the stream's own first keys instead of the rows of the key projection; bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from penstock.memory import Cascade, Geometry, Placement
from penstock.memory.codec import BlockFloat
from penstock.memory.coded import coded_window
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class KSort(Method):
    """A window in 4 bits and a bit: cheaper to decode than integers, finer where keys have a few large channels.

    `block` channels of a token share an exponent (at most half a head: one block has nothing to sort).  The order of
    channels is found once per head, from the first group of tokens.  Values are left unsorted.  The first `sinks`
    tokens stay in full precision; `full` is how many entries at most do, sinks and newest together.  `coded=false`
    keeps the same window without codes: the difference is what they cost.
    """

    name: ClassVar[str] = "k-sort"
    title: ClassVar[str] = "Block floating point with sorted channels"
    source: ClassVar[str] = "arXiv:2403.20137"
    differs: ClassVar[str] = (
        "channels are sorted by the first keys of the stream, not by the rows of the weights; bounded"
    )
    slots: ClassVar[tuple[str, ...]] = ("segments", "positions", "codec")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}
    # A number on a border of two codes takes either, by the last bit of the model's kernels.
    rounds: ClassVar[bool] = True

    sinks: int = 4
    full: int = 64
    coded: bool = True
    block: int = 32
    bits: int = 4
    sort: bool = True

    def cascade(self, budget: int | None, width: int = 1 << 20) -> Cascade:
        block = min(self.block, width // 2)
        keys, values = BlockFloat(self.bits, block, self.sort), BlockFloat(self.bits, block)
        return coded_window(budget, self.sinks, self.full, (lambda _: (keys, values)) if self.coded else None)

    def cascades(self, geometry: Geometry, budget: int | None) -> tuple[Placement, ...]:
        found = [(self.cascade(budget, layer.key_width), layer.window) for layer in geometry.layers]
        return tuple(cascade if window is None else cascade.limited_to(window) for cascade, window in found)

    def lossless(self) -> KSort:
        """The same window without codes."""
        return replace(self, coded=False)
