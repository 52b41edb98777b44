"""lserve: pages chosen by bounds on what a query can find in them.  arXiv:2502.14866

Differs from the paper: pages are chosen per layer, by shares of attention, once per unit while reading and per query
for questions; streaming heads are a method of their own (duo-attention); pages have a limit in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from penstock.memory import Cascade, Sinks, Window
from penstock.memory.archive import Archive
from penstock.memory.archive_plan import divide, tiers
from penstock.memory.retrieval import Bounds
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class LServe(Method):
    """Sinks, a window, and the best pages by channel-wise least and greatest keys.

    A page of `block` entries is bounded in `pieces` parts; three quarters of the budget are for pages.  The
    choice made for a unit serves the next one: the paper's reuse of the selector, with the unit as its interval.
    """

    name: ClassVar[str] = "lserve"
    title: ClassVar[str] = "Pages chosen by bounds on their keys"
    source: ClassVar[str] = "arXiv:2502.14866"
    differs: ClassVar[str] = "raw keys are bounded; one choice per layer, by the share of attention; bounded archive"
    slots: ClassVar[tuple[str, ...]] = ("segments", "retrieval", "positions", "tier")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows", "steady"}
    waived: ClassVar[dict[str, str]] = {
        "steady": "a choice scores the newest blocks (few or many, 16,384 tokens at most) and some that an "
        "index names, whose lists grow until the archive is full; what is read never grows",
    }

    block: int = 16
    pieces: int = 8
    positions: Literal["contiguous", "stream", "clamped"] = "contiguous"
    ram: str = "256MiB"
    disk: str = ""
    folder: str = ""

    def lossless(self) -> LServe:
        """Entries where they were in the stream."""
        return replace(self, positions="stream")

    def cascade(self, budget: int | None) -> Cascade:
        share = divide(self.name, budget, self.block, 1 / 32, 3 / 4)
        archive = Archive(share.block, share.slots, Bounds(self.pieces), tiers(self.ram, self.disk, self.folder))
        return Cascade((Sinks(share.sinks), Window(share.window), archive), self.positions, share.unit)
