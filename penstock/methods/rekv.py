"""rekv: a stream is read through a window, and questions retrieve the blocks that concern them.  arXiv:2503.00540

Differs from the paper: every token of a question or answer chooses for itself, per layer, by the shares of attention
that the heads would give to mean keys without positions; the archive has a limit in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from penstock.memory import Cascade, Sinks, Window
from penstock.memory.archive import Archive
from penstock.memory.archive_plan import divide, tiers
from penstock.memory.retrieval import Mean
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class ReKV(Method):
    """A window while reading; for questions, three quarters of the budget come from an archive.

    `block` entries (a frame, in video; few in text, where a mean says little of many) are summed up by their mean key;
    a layer's heads choose together.  Positions: `contiguous` numbers what is read anew, retrieved blocks before the
    window (the paper), `clamped` and `stream` as elsewhere.
    """

    name: ClassVar[str] = "rekv"
    title: ClassVar[str] = "A window, and retrieval for questions"
    source: ClassVar[str] = "arXiv:2503.00540"
    differs: ClassVar[str] = "every token of a question chooses for itself, by keys without positions; bounded archive"
    slots: ClassVar[tuple[str, ...]] = ("segments", "retrieval", "positions", "tier")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows", "steady"}
    waived: ClassVar[dict[str, str]] = {
        "steady": "for a question, a choice scores the newest blocks (few or many, 16,384 tokens at most) and some "
        "that an index names, whose lists grow until the archive is full; what is read never grows",
    }

    block: int = 4
    positions: Literal["contiguous", "clamped", "stream"] = "contiguous"
    ingest: Literal["none", "unit"] = "none"
    ram: str = "256MiB"
    disk: str = ""
    folder: str = ""

    def lossless(self) -> ReKV:
        """Retrieval also while reading, entries where they were in the stream."""
        return replace(self, positions="stream", ingest="unit")

    def cascade(self, budget: int | None) -> Cascade:
        share = divide(self.name, budget, self.block, 1 / 64, 3 / 4)
        limits = tiers(self.ram, self.disk, self.folder)
        archive = Archive(share.block, share.slots, Mean(), limits, self.ingest)
        return Cascade((Sinks(share.sinks), Window(share.window), archive), self.positions, share.unit)
