"""kv8: keys and values in 8 bits, except for the sinks and the newest entries.  arXiv:2402.02750

Differs from the paper: 8 bits instead of 2; bounded; keys are coded before the rotation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from penstock.memory import Cascade
from penstock.memory.codec import Codec, Int8
from penstock.memory.coded import coded_window
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class KV8(Method):
    """A window of the newest tokens at a little over half of its bytes, with no loss to speak of.

    Keys share a scale per channel, over the tokens of a group; values per token, over 32 channels.  The first `sinks`
    tokens stay in full precision; `full` is how many entries at most do, sinks and newest together.  `coded=false`
    keeps the same window without codes: the difference is what they cost.
    """

    name: ClassVar[str] = "kv8"
    title: ClassVar[str] = "8-bit keys and values"
    source: ClassVar[str] = "arXiv:2402.02750"
    differs: ClassVar[str] = "8 bits instead of 2; bounded; keys are coded before the rotation"
    slots: ClassVar[tuple[str, ...]] = ("segments", "positions", "codec")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}
    rounds: ClassVar[bool] = (
        True  # a number on a border of two codes takes either, by the last bit of the model's kernels
    )

    sinks: int = 4
    full: int = 64
    coded: bool = True

    def cascade(self, budget: int | None) -> Cascade:
        return coded_window(budget, self.sinks, self.full, self._codecs if self.coded else None)

    def _codecs(self, group: int) -> tuple[Codec, Codec]:
        return (Int8("channel", group), Int8("token", 32))

    def lossless(self) -> KV8:
        """The same window without codes."""
        return replace(self, coded=False)
