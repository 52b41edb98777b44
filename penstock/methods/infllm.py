"""infllm: first tokens, a window, and retrieved blocks of all that left it.  arXiv:2402.04617

Differs from the paper: a block's representatives are the keys that the queries of its unit attend to most, each kept
by itself; blocks are chosen per layer by the shares of attention that the heads would give them, once per unit while
reading and per query for questions; the archive has a limit in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from penstock.memory import Cascade, Sinks, Window
from penstock.memory.archive import Archive
from penstock.memory.archive_plan import divide, tiers
from penstock.memory.retrieval import Representatives
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class InfLLM(Method):
    """Sinks (1/16 of the budget), a window and the best blocks of an archive (half).

    `block` entries make a block (at most a sixteenth of the budget), summed up by `representatives` keys: all of them
    by default, for the few that the text itself attends to are not those that a question asks for.  Positions:
    `clamped` puts all that is retrieved at the window's edge (the paper), `stream` leaves it where it was, `contiguous`
    numbers what is read anew.  `ram`, `disk` and `folder` limit the archive, oldest blocks out.
    """

    name: ClassVar[str] = "infllm"
    title: ClassVar[str] = "Sinks, a window and retrieved blocks"
    source: ClassVar[str] = "arXiv:2402.04617"
    differs: ClassVar[str] = "small blocks, all keys kept as representatives, each by itself; bounded archive"
    slots: ClassVar[tuple[str, ...]] = ("segments", "retrieval", "positions", "tier")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows", "steady"}
    waived: ClassVar[dict[str, str]] = {
        "steady": "a choice scores the newest blocks (few or many, 16,384 tokens at most) and some that an "
        "index names, whose lists grow until the archive is full; what is read never grows",
    }

    block: int = 16
    representatives: int = 16
    positions: Literal["clamped", "stream", "contiguous"] = "clamped"
    ram: str = "256MiB"
    disk: str = ""
    folder: str = ""

    def lossless(self) -> InfLLM:
        """Retrieved entries where they were in the stream."""
        return replace(self, positions="stream")

    def cascade(self, budget: int | None) -> Cascade:
        share = divide(self.name, budget, self.block, 1 / 16, 1 / 2)
        archive = Archive(
            share.block, share.slots, Representatives(self.representatives), tiers(self.ram, self.disk, self.folder)
        )
        return Cascade((Sinks(share.sinks), Window(share.window), archive), self.positions, share.unit)
