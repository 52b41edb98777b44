"""kv4 and kv8: keys and values in 4 or 8 bits, except for the sinks and the newest entries.  arXiv:2402.02750

Differs from the paper: bounded; keys are coded before the rotation; the oldest group of tokens leaves whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from penstock.memory import Cascade
from penstock.memory.codec import Codec, Int4, Int8
from penstock.memory.coded import coded_window
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class KV4(Method):
    """A window of the newest tokens at a third of its bytes; on the shipped model its loss grows by 0.2%.

    Keys share a scale per channel, over the tokens of a group; values per token, over 32 channels.  The first `sinks`
    tokens stay in full precision; `full` is how many entries at most do, sinks and newest together.  `coded=false`
    keeps the same window without codes: the difference is what they cost.
    """

    name: ClassVar[str] = "kv4"
    title: ClassVar[str] = "4-bit keys and values"
    source: ClassVar[str] = "arXiv:2402.02750"
    differs: ClassVar[str] = "bounded; keys are coded before the rotation; the oldest group of tokens leaves whole"
    slots: ClassVar[tuple[str, ...]] = ("segments", "positions", "codec")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}
    # A number on a border of two codes takes either, by the last bit of the model's kernels.
    rounds: ClassVar[bool] = True
    codec: ClassVar[type[Int4] | type[Int8]] = Int4

    sinks: int = 4
    full: int = 64
    coded: bool = True

    def cascade(self, budget: int | None) -> Cascade:
        return coded_window(budget, self.sinks, self.full, self._codecs if self.coded else None)

    def _codecs(self, group: int) -> tuple[Codec, Codec]:
        return (self.codec("channel", group), self.codec("token", 32))

    def lossless(self) -> KV4:
        """The same window without codes."""
        return replace(self, coded=False)


@dataclass(frozen=True)
class KV8(KV4):
    """As kv4, in 8 bits: a window of the newest tokens at a little over half of its bytes, with no loss to speak of."""

    name: ClassVar[str] = "kv8"
    title: ClassVar[str] = "8-bit keys and values"
    differs: ClassVar[str] = "8 bits instead of 2; bounded; keys are coded before the rotation"
    codec: ClassVar[type[Int4] | type[Int8]] = Int8
