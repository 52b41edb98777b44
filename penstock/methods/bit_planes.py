"""bit-planes: keys and values as bipolar integers, one tensor per bit, read at any precision.  arXiv:2508.19087

Differs from the paper: only its number format, for stored keys and values; no kernels, so nothing is faster.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from penstock.memory import Cascade
from penstock.memory.codec import BitPlanes as Planes
from penstock.memory.coded import coded_window
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class BitPlanes(Method):
    """A window in any number of bits from 1 to 8, of which a reader may leave the low ones out.

    `planes` are stored and `read` of them are read (0: all).  The first `sinks` tokens stay in full precision; `full`
    is how many entries at most do, sinks and newest together.  `coded=false` keeps the same window without codes: the
    difference is what they cost.
    """

    name: ClassVar[str] = "bit-planes"
    title: ClassVar[str] = "Bit-plane integers"
    source: ClassVar[str] = "arXiv:2508.19087"
    differs: ClassVar[str] = "only the number format, for stored keys and values; no kernels, so nothing is faster"
    slots: ClassVar[tuple[str, ...]] = ("segments", "positions", "codec")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}
    # A number on a border of two codes takes either, by the last bit of the model's kernels.
    rounds: ClassVar[bool] = True

    sinks: int = 4
    full: int = 64
    coded: bool = True
    planes: int = 4
    read: int = 0

    def cascade(self, budget: int | None) -> Cascade:
        return coded_window(budget, self.sinks, self.full, self._codecs if self.coded else None)

    def _codecs(self, group: int) -> tuple[Planes, Planes]:
        return (
            Planes("channel", group, count=self.planes, read=self.read),
            Planes("token", 32, count=self.planes, read=self.read),
        )

    def lossless(self) -> BitPlanes:
        """The same window without codes."""
        return replace(self, coded=False)
