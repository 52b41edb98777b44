"""An archive: entries that are sealed into blocks for good, of which every query reads the few that concern it.

    arriving ──► pending (less than a block) ──► blocks, in main memory and on disk
                     │                               │ the best by their summaries
    query  ──────► partial                       partial

While the stream is read, blocks are chosen once per unit, from the queries of the unit before, and kept on the device
("near"), so that reading costs what a window costs.  For a question each query chooses for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from penstock.core import Phase
from penstock.errors import BudgetError, CompositionError
from penstock.memory.archive_blocks import Archived
from penstock.memory.entries import Entries
from penstock.memory.frames import Frame
from penstock.memory.parts import Offer, Part, Place, Query, Readable, State, Stored, Unit, refuse_alibi
from penstock.memory.retrieval import Mean, Selector
from penstock.memory.tiers import Tiers
from penstock.memory.tiers.disk import slot_bytes


@dataclass(frozen=True)
class Archive(Part):
    """Blocks of `block` entries, of which a query reads `slots`.

    `ingest` says how blocks are chosen while the stream is read: per "unit", per "token" as for questions, or "none".
    `by_head` lets every key-value head read blocks of its own.
    """

    needs_queries: ClassVar[bool] = True
    dynamic: ClassVar[bool] = True
    role: ClassVar[str] = "far"

    block: int
    slots: int
    select: Selector = Mean()  # noqa: RUF009 -- a frozen value
    tiers: Tiers = Tiers(256 << 20)  # noqa: RUF009
    ingest: str = "unit"
    by_head: bool = False

    def __post_init__(self) -> None:
        if self.block < 1 or self.slots < 1:
            raise BudgetError(
                f"an archive of {self.slots} slots for blocks of {self.block} entries reads nothing: raise the budget."
            )
        if self.ingest not in ("unit", "token", "none"):
            raise CompositionError(f"unknown choice while reading {self.ingest!r}: choose unit, token or none.")

    @property
    def entries(self) -> int:
        return self.slots * self.block + self.block - 1

    def nbytes(self, place: Place) -> int:
        """Retrieved and pending entries, and a table of channels where the selector has one."""
        table = place.heads * self.select.width(place.layer.key_width) * 8
        return self.entries * place.entry_bytes() + table

    def check(self, place: Place) -> None:
        """Raw keys must mean something by themselves."""
        refuse_alibi(place, "an archive")

    def least(self, place: Place) -> tuple[int, int]:
        """Bytes of main memory and of disk without which one archive is worth nothing."""
        sizes = Archived.none(place, self.block, self.select, self.by_head).sizes
        return sizes.least, sizes.each * slot_bytes(sizes.row)

    def begin(self, place: Place) -> State:
        """Nothing."""
        return {
            "pending": place.none(), "near": place.none(),
            "blocks": Archived.none(place, self.block, self.select, self.by_head),
        }  # fmt: skip

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """Seal whole blocks, then choose for the next unit."""
        assert unit.query is not None
        query = _by_head(unit.query, place)
        asking = query
        if place.positions == "clamped":
            asking = _by_head(place.turn(unit.query, torch.full((1, unit.count), place.cap)), place)
        pending = Entries.join([state["pending"], place.raw(arriving)])
        blocks: Archived = state["blocks"]
        whole = len(pending) // self.block * self.block
        if whole:
            sealed, pending = pending.split(whole)
            blocks = blocks.seal(sealed, query)
        near = place.none()
        if self.ingest == "unit" and len(blocks):
            near = blocks.fetch(blocks.choose(asking, self.slots, together=True, chooser=unit.chooser)[0])
        return {"pending": pending, "near": near, "blocks": blocks}, None

    def read(self, state: State, query: Query, frame: Frame, place: Place) -> Iterator[Offer]:
        """What was chosen for the unit, or for each query what it chooses; then what is not sealed yet."""
        blocks: Archived = state["blocks"]
        pending: Entries = state["pending"]
        behind = min(blocks.live, self.slots) * self.block
        if query.phase is Phase.INGEST and self.ingest != "token":
            if len(state["near"]):
                yield Readable.of(state["near"], frame)
        elif blocks.live:
            asking = query.to(frame.query) if frame.policy == "far" else query.raw
            asks = query.phase is not Phase.ANSWER
            chosen = blocks.choose(_by_head(asking, place), self.slots, asks=asks, chooser=query.chooser)  # [C, (H,) k]
            if query.wanted is not None:
                chosen = blocks.including(chosen, query.wanted)
            for start, stop in _runs(chosen):
                queries = (0, None) if stop - start == len(query) else (start, stop)
                yield from _offered(blocks, chosen[start], frame, queries)
        if len(pending):
            yield Readable.of(pending, replace(frame, base=frame.base + behind))

    def held(self, state: State) -> Tensor | None:
        return None

    def span(self, state: State) -> tuple[int, int, int]:
        blocks: Archived = state["blocks"]
        pending: Entries = state["pending"]
        count = min(blocks.live, self.slots) * self.block + len(pending)
        seen = [*(blocks.ends if len(blocks) else ()), *pending.seen.flatten().tolist()]
        return (count, min(seen), max(seen)) if seen else (0, 0, 0)

    def remembered(self, state: State) -> Tensor:
        """What is pending, and all blocks that can be read."""
        blocks: Archived = state["blocks"]
        parts = [state["pending"].seen.flatten()]
        for first in range(blocks.oldest, len(blocks), 256):
            ids = torch.arange(first, min(first + 256, len(blocks)))
            each = ids.expand(blocks.layout.place.heads, -1) if self.by_head else ids
            parts.append(blocks.fetch(each).seen.flatten())
        return torch.cat(parts).unique()

    def shift(self, state: State, by: int, place: Place) -> State:
        """Blocks are never altered: they remember by how much they were moved."""
        moved = super().shift(state, by, place)
        return {**moved, "blocks": state["blocks"].moved(by)}


def _by_head(query: Tensor, place: Place) -> Tensor:
    """[Hq, C, D] as [H, g, C, D]."""
    return query.unflatten(0, (place.heads, place.group))


def _offered(
    blocks: Archived, ids: Tensor, frame: Frame, queries: tuple[int, int | None]
) -> Iterator[Readable | Stored]:  # fmt: skip
    """The blocks ids [(H,) k] for some queries; where their positions are known beforehand, as they are stored."""

    def plain() -> Iterator[Readable]:
        found = blocks.fetch(ids)
        if len(found):
            yield replace(Readable.of(found, frame), queries=queries)

    if frame.policy == "stream" or queries != (0, None):
        yield from plain()
    else:
        first = None if frame.policy == "far" else frame.base
        yield Stored(lambda: blocks.lent(ids), first, frame.query, plain)


def _runs(chosen: Tensor) -> Iterator[tuple[int, int]]:
    """[start, stop) of consecutive queries that chose the same."""
    flat, start = chosen.flatten(1), 0
    for i in range(1, len(flat) + 1):
        if i == len(flat) or not torch.equal(flat[i], flat[start]):
            yield start, i
            start = i
