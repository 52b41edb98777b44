"""double-sparsity: a few channels of each key say which entries are worth reading.  arXiv:2408.07092

Differs from the paper: small blocks are fetched, not single tokens, over an archive with a limit in bytes; channels are
chosen from the stream's own first block; labels hold raw keys, shared by the query heads of a group; all heads of a
layer choose together, by shares of attention.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from penstock.memory import Cascade, Sinks, Window
from penstock.memory.archive import Archive
from penstock.memory.archive_plan import divide, tiers
from penstock.memory.retrieval import Channels
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class DoubleSparsity(Method):
    """Sinks, a window, and the blocks with the best entries by `channels` channels of every key.

    Three quarters of the budget are for them.  Channels are those in which the keys and queries of the first
    block are large together, per key-value head.
    """

    name: ClassVar[str] = "double-sparsity"
    title: ClassVar[str] = "Entries chosen by a few channels of their keys"
    source: ClassVar[str] = "arXiv:2408.07092"
    differs: ClassVar[str] = "blocks of up to 8, not tokens; channels from the first block of the stream"
    slots: ClassVar[tuple[str, ...]] = ("segments", "retrieval", "positions", "tier")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows", "steady"}
    waived: ClassVar[dict[str, str]] = {
        "steady": "a choice scores the newest blocks (few or many, 16,384 tokens at most) and some that an "
        "index names, whose lists grow until the archive is full; what is read never grows",
    }

    block: int = 8
    channels: int = 16
    positions: Literal["contiguous", "stream", "clamped"] = "contiguous"
    ram: str = "256MiB"
    disk: str = ""
    folder: str = ""

    def lossless(self) -> DoubleSparsity:
        """Entries where they were in the stream."""
        return replace(self, positions="stream")

    def cascade(self, budget: int | None) -> Cascade:
        share = divide(self.name, budget, self.block, 1 / 32, 3 / 4)
        archive = Archive(share.block, share.slots, Channels(self.channels), tiers(self.ram, self.disk, self.folder))
        return Cascade((Sinks(share.sinks), Window(share.window), archive), self.positions, share.unit)
