"""The blocks of one archive as a value: ids in a block store, what finds them, and nothing that ever changes.

A block's bytes hold keys, values, indices seen, kinds and places of its entries, head by head, so that what comes back
from a disk is complete.  Main memory holds, for every block, its places in the lists of an index (block_index.py), and
summaries of the newest blocks only, those of the *open run*; older ones are made again from the keys of the few blocks
that the index proposes.  Handles with a common past share all of it.

    blocks      0 ........................ base ............. count
                  index ──► keys of some      summaries of all
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count as counter
from typing import Any

import torch
from torch import Tensor

from penstock.errors import CompositionError
from penstock.memory.archive_choice import choose
from penstock.memory.archive_layout import Layout, Rows
from penstock.memory.archive_sizes import Sizes
from penstock.memory.block_index import CENTRES, BlockIndex, number
from penstock.memory.chooser import Chooser
from penstock.memory.entries import Entries
from penstock.memory.lending import Lent
from penstock.memory.parts import Place
from penstock.memory.retrieval import Selector
from penstock.memory.tiers import BlockStore

_LATER = 4  # the first run, from which the index learns its centres, is so many times as long as later ones
_JOIN = 8  # runs are joined up to this part of the capacity
_SERIAL = counter()


@dataclass(frozen=True, eq=False)
class Archived:
    """`count` sealed blocks: their store, the index of those before `base`, summaries of the others."""

    layout: Layout
    selector: Selector
    apart: bool  # each head reads blocks of its own
    store: BlockStore | None = None
    count: int = 0
    run: int = 0  # blocks in the first run, settled when the store is opened
    summary: Rows = field(default=None)  # type: ignore[assignment]  # of the open run
    codes: Rows = field(default=None)  # type: ignore[assignment]  # of the same blocks, once there are centres
    index: BlockIndex = field(default_factory=BlockIndex)
    table: Tensor | None = None
    ends: tuple[int, int] = (0, 0)  # oldest and newest index seen
    shift: int = 0

    @staticmethod
    def none(place: Place, block: int, selector: Selector, apart: bool) -> Archived:
        """No blocks."""
        heads, width = place.heads, selector.width(place.layer.key_width)
        layout = Layout(place, block, 1 if apart else heads, selector.marks(block))
        rows = Rows.empty((heads, selector.rows(block), width))
        return Archived(layout, selector, apart, summary=rows, codes=Rows.empty((heads, 0), torch.int16))

    def __len__(self) -> int:
        return self.count

    @property
    def each(self) -> int:
        """Rows of the store per block."""
        return self.layout.place.heads if self.apart else 1

    @property
    def sizes(self) -> Sizes:
        """What it takes."""
        heads, block = self.layout.place.heads, self.layout.block
        rows = heads * self.selector.rows(block)
        summary = rows * self.selector.width(self.layout.place.layer.key_width) * 4
        return Sizes(self.layout.nbytes, self.each, summary, 3 * rows)  # two bytes in a list, and the lists' starts

    @property
    def _length(self) -> int:
        """Blocks of the open run when it is full."""
        return self.run if self.index.centres is None else max(1, self.run // _LATER)

    @property
    def base(self) -> int:
        """The first block of the open run."""
        return self.count - len(self.summary)

    @property
    def oldest(self) -> int:
        """The first block that may still be there."""
        return 0 if self.store is None else -(-self.store.oldest // self.each)

    @property
    def live(self) -> int:
        """Blocks that can be read."""
        return max(0, self.count - self.oldest)

    # -- writing ------------------------------------------------------------------------------------------------

    def seal(self, entries: Entries, query: Tensor) -> Archived:
        """With whole blocks of raw entries behind; `query` [H, g, U, D] are those of the unit."""
        size, heads = self.layout.block, self.layout.place.heads
        blocks = len(entries) // size
        out = self._opened()
        assert out.store is not None
        if len(out.store) > self.count * self.each:
            out.store.truncate(self.count * self.each)
        keys = entries.key.unflatten(1, (blocks, size)).transpose(0, 1).float()  # [n, H, B, D]
        query, table = query.float(), self.table
        if table is None:
            table = self.selector.calibrate(keys[0], query)
        chosen = self.selector.chosen(keys, query)
        ends = (int(entries.seen.min()) if not self.count else self.ends[0], int(entries.seen.max()))
        if self.shift:  # what is read is moved by it
            place = None if entries.place is None else entries.place - self.shift
            entries = replace(entries, seen=entries.seen - self.shift, place=place)
        if self.apart:
            marks = [None if chosen is None else chosen[:, h : h + 1] for h in range(heads)]
            rows = torch.stack([self.layout.pack(_head(entries, h), marks[h]) for h in range(heads)], 1).flatten(0, 1)
        else:
            rows = self.layout.pack(entries, chosen)
        out.store.append(rows)
        out = replace(out, table=table, ends=ends)
        new = self.selector.summary(keys, chosen, table).cpu()
        while len(new):
            room = max(0, out._length - len(out.summary))
            out, new = out._summed(new[:room]), new[room:]
        return out._counted()

    def _opened(self, run: int = 0) -> Archived:
        """With a store, and runs of so many blocks (0: what main memory allows)."""
        if self.store is not None:
            return self
        place, sizes = self.layout.place, self.sizes
        pool = place.pool()
        run = run or sizes.run(pool.ram // pool.expected, self.layout.block)
        heads, points, width = self.selector.points(self.summary.none(1).base.buffer.data.transpose(0, 1)).shape[1:]
        centres = heads * min(number(run * points), CENTRES) * width * 4
        root = pool.open(
            (self.layout.nbytes,), torch.uint8, f"{place.label}/{next(_SERIAL)}",
            beside=-(-sizes.listed // self.each), fixed=sizes.fixed(run, centres),
        )  # fmt: skip
        line: BlockStore = root.fork(0)  # a fork is closed when nobody refers to it any more
        root.close()
        codes = Rows.empty((heads, points), torch.int16)
        return replace(self, store=line, run=run, summary=self.summary.none(run), codes=codes)

    def _summed(self, new: Tensor) -> Archived:
        """With summaries of new blocks, as many as the open run has room for; it is closed when it is full."""
        summary, codes, index = self.summary.append(new), self.codes, self.index
        if index.centres is not None:
            codes = codes.append(index.codes(self.selector.points(new)))
            index = index.since(self.oldest)
        out = replace(self, count=self.count + len(new), summary=summary, codes=codes, index=index)
        if len(summary) < self._length:
            return out
        if index.centres is None:
            points = self.selector.points(torch.cat(summary.parts))
            index = BlockIndex.trained(points)
            codes = codes.append(index.codes(points))
        assert self.store is not None
        most = max(self.run, self.store.capacity // self.each // _JOIN)
        index = index.with_run(self.base, torch.cat(codes.parts), most)
        out = replace(out, index=index)
        return replace(out, summary=summary.none(out._length), codes=codes.none(out._length))

    def _counted(self) -> Archived:
        """Counted by the pool as main memory."""
        assert self.store is not None
        self.store.pool.count_in(*self.summary.buffers, *self.codes.buffers, *self.index.buffers)
        return self

    # -- reading ------------------------------------------------------------------------------------------------

    def choose(
        self, query: Tensor, slots: int, *, together: bool = False, asks: bool = True, chooser: Chooser | None = None
    ) -> Tensor:  # fmt: skip
        """[C, k] ids of the blocks that queries [H, g, C, D] read, in stream order; [C, H, k] where heads part.

        Fewer than `slots` if there are not more.  `together`: one choice for all, by the mean of the queries.  Queries
        that do not ask, but go on from what a question has found, look at fewer blocks.
        """
        return choose(self, query, slots, together, asks, chooser)

    def including(self, chosen: Tensor, wanted: range) -> Tensor:
        """The choice [C, (H,) k] of an oracle: with the blocks that hold the indices `wanted` in place of the oldest
        others.  Blocks that are lost hold nothing."""
        right = self._holding(wanted)[: chosen.shape[-1]]
        flat = chosen.flatten(0, -2)
        out = []
        for row in flat:
            others = row[~torch.isin(row, right)]
            out.append(torch.cat((right, others[len(others) - (len(row) - len(right)) :])).sort().values)
        return torch.stack(out).view(chosen.shape)

    def _holding(self, wanted: range) -> Tensor:
        """Ids of the blocks that hold some of the indices seen; reads all blocks."""
        ids = torch.arange(self.oldest, self.count)
        if self.store is None:
            return ids
        rows, there = self.store.fetch(ids * self.each)
        seen = rows[:, : self.layout.block * 8].view(torch.int64) + self.shift  # the first column, of the first head
        return ids[there & ((seen >= wanted.start) & (seen < wanted.stop)).any(1)]

    def fetch(self, ids: Tensor) -> Entries:
        """Raw entries [H, m] of the blocks ids [k], or [H, k] where heads part; lost ones are left out."""
        place = self.layout.place
        if self.store is None or not ids.numel():
            return place.none()
        if not self.apart:
            rows, there = self.store.fetch(ids)
            return self.layout.unpack(rows if there.all() else rows[there], self.shift)
        rows, there = self.store.fetch((ids * self.each + torch.arange(place.heads)[:, None]).flatten())
        rows, there = rows.view(*ids.shape, -1), there.view(ids.shape)
        return self.layout.unpack(rows if there.all() else rows[:, there.all(0)], self.shift)  # heads hold equally many

    @contextmanager
    def lent(self, ids: Tensor) -> Iterator[Lent | None]:
        """The blocks ids [k], or [H, k] where heads part, where they lie; None if only `fetch` can give them."""
        if self.store is None or not ids.numel():
            yield None
            return
        rows = ids * self.each + torch.arange(self.layout.place.heads)[:, None] if self.apart else ids
        with self.store.lent(rows.flatten()) as addresses:
            yield None if addresses is None else Lent(addresses.reshape(ids.shape), self.layout)

    # -- as a value of a state ----------------------------------------------------------------------------------

    @property
    def pool(self) -> Any:
        """The pool behind the store, None as long as there is none."""
        return None if self.store is None else self.store.pool

    def tensors(self) -> Any:
        """What is counted on the device: the calibrated table."""
        if self.table is not None:
            yield self.table

    def fork(self) -> Archived:
        """For another life."""
        return self if self.store is None else replace(self, store=self.store.fork(self.count * self.each))

    def moved(self, by: int) -> Archived:
        """As if `by` more tokens had passed."""
        return replace(self, shift=self.shift + by, ends=(self.ends[0] + by, self.ends[1] + by))

    def save(self) -> dict[str, Tensor]:
        """All that can still be read, self-contained."""
        out = {"numbers": torch.tensor([self.count, self.run, *self.ends, self.shift])}
        if self.table is not None:
            out["table"] = self.table
        if self.store is None:
            return out
        out |= {**_rows(summary=self.summary, codes=self.codes), **self.index.save()}
        ids = torch.arange(self.oldest * self.each, self.count * self.each)
        if len(ids):
            out["blocks"], out["present"] = self.store.fetch(ids)
        return out

    def load(self, saved: Mapping[str, Tensor]) -> Archived:
        """The inverse, in the memory's own pool."""
        try:
            count, run, oldest, newest, shift = saved["numbers"].tolist()
            out = replace(self, ends=(oldest, newest), shift=shift, table=saved.get("table"))
            if not count:
                return out
            out = out._opened(run)
            out = replace(
                out, count=count, index=BlockIndex.load(saved), summary=out.summary.append(saved["summary"]),
                codes=out.codes.append(saved["codes"]),
            )  # fmt: skip
            store = out.store
            assert store is not None
            blocks = saved.get("blocks", torch.zeros(0, self.layout.nbytes, dtype=torch.uint8))
            there = saved.get("present", torch.zeros(0, dtype=torch.bool))
            store.skip(count * self.each - len(blocks))
            for row, found in zip(blocks, there):
                store.append(row[None]) if found else store.skip(1)
            return out._counted()
        except (KeyError, ValueError, RuntimeError) as error:
            raise CompositionError(
                f"the saved archive does not fit this memory ({error}): use the same model, method and budget."
            ) from None


def _rows(**rows: Rows) -> dict[str, Tensor]:
    """[n, H, ...] each."""
    return {name: torch.cat(each.parts).contiguous() for name, each in rows.items()}


def _head(entries: Entries, head: int) -> Entries:
    return Entries(**{name: t[head : head + 1] for name, t in entries.columns().items()}, turned=entries.turned)


__all__ = ["Archived"]
