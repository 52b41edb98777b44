"""The blocks of one archive as a value: ids in a block store, their summaries, and nothing that ever changes.

A block's bytes hold keys, values, indices seen, kinds and places of its entries, head by head, so that what comes back
from a disk is complete.  Handles with a common past share the store's blocks and the rows of their summaries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count as counter
from typing import Any

import torch
from torch import Tensor

from penstock.errors import CompositionError
from penstock.memory.entries import Entries
from penstock.memory.parts import Place
from penstock.memory.retrieval import GROUP, Selector, search, shares
from penstock.memory.tiers import BlockStore
from penstock.memory.tiers.pool import Line
from penstock.memory.vector import Vector

_FLAT = 1024  # blocks that are all scored, for the one choice per unit while reading
_ASKED = 8192  # and for a question, which is rare and wants the right block
_SERIAL = counter()


@dataclass(frozen=True)
class Rows:
    """Rows on the host that only grow: a common base, and what was added after parting from others who share it."""

    base: Vector
    own: Vector

    @staticmethod
    def empty(shape: tuple[int, ...]) -> Rows:
        """Nothing yet."""
        return Rows(Vector.empty(shape, torch.float32), Vector.empty(shape, torch.float32))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All rows, in one or two pieces."""
        return tuple(v.data for v in (self.base, self.own) if len(v)) or (self.base.data,)

    def __len__(self) -> int:
        return len(self.base) + len(self.own)

    def append(self, more: Tensor) -> Rows:
        """With `more` behind."""
        if not len(self.own) and self.base.buffer.used == len(self.base):
            return Rows(self.base.append(more), self.own)
        if len(self.own) <= max(GROUP, len(self.base) // 4):
            return Rows(self.base, self.own.append(more))
        return self.from_row(0).append(more)

    def from_row(self, first: int) -> Rows:
        """The rows from `first` on, in a buffer of their own."""
        none = Rows.empty(tuple(self.base.buffer.data.shape[1:]))
        return Rows(none.base.append(torch.cat(self.parts)[first:]), none.own)

    @property
    def buffers(self) -> tuple[Any, ...]:
        return (self.base.buffer, self.own.buffer)


@dataclass(frozen=True)
class Layout:
    """Where the columns of `heads` heads of a block lie in its bytes."""

    place: Place
    block: int
    heads: int

    def _columns(self) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
        layer, shape = self.place.layer, (self.heads, self.block)
        yield "seen", torch.int64, shape
        if self.place.placed:
            yield "place", torch.int64, shape
        yield "key", self.place.dtype, (*shape, layer.key_width)
        yield "value", self.place.dtype, (*shape, layer.value_width)
        yield "kind", torch.uint8, shape

    @property
    def nbytes(self) -> int:
        """Bytes of one row, a multiple of 8 so that all columns are aligned."""
        return -(-sum(_size(dtype, shape) for _, dtype, shape in self._columns()) // 8) * 8

    def pack(self, entries: Entries) -> Tensor:
        """[n, nbytes] uint8 of entries [heads, n * block]."""
        blocks = len(entries) // self.block
        out = torch.zeros(blocks, self.nbytes, dtype=torch.uint8)
        start = 0
        for name, dtype, shape in self._columns():
            column = getattr(entries, name).cpu().unflatten(1, (blocks, self.block)).transpose(0, 1).contiguous()
            size = _size(dtype, shape)
            out[:, start : start + size] = column.reshape(blocks, -1).view(torch.uint8)
            start += size
        return out

    def unpack(self, rows: Tensor, shift: int) -> Entries:
        """Entries [H, n * block] of rows [n, nbytes], or of [H, n, nbytes] with a head in each; indices moved."""
        found: dict[str, Tensor] = {}
        start = 0
        for name, dtype, shape in self._columns():
            size = _size(dtype, shape)
            column = rows[..., start : start + size].view(dtype)
            column = column.unflatten(-1, shape)
            column = column.transpose(0, 1) if rows.dim() == 2 else column[:, :, 0]  # [H, n, block, ...]
            found[name] = column.flatten(1, 2)
            start += size
        device = self.place.device
        place = found["place"] + shift if self.place.placed else None
        return Entries(
            found["key"].to(device), found["value"].to(device), found["seen"] + shift, found["kind"], place
        )  # fmt: skip


def _size(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    size = dtype.itemsize
    for n in shape:
        size *= n
    return size


@dataclass(frozen=True, eq=False)
class Archived:
    """`count` sealed blocks: their store, from `first` on their summaries, and boxes of each whole group of 64."""

    layout: Layout
    selector: Selector
    apart: bool  # each head reads blocks of its own
    store: BlockStore | None = None
    count: int = 0
    first: int = 0
    summary: Rows = field(default=None)  # type: ignore[assignment]
    coarse: Rows = field(default=None)  # type: ignore[assignment]
    table: Tensor | None = None
    ends: tuple[int, int] = (0, 0)  # oldest and newest index seen
    shift: int = 0

    @staticmethod
    def none(place: Place, block: int, selector: Selector, apart: bool) -> Archived:
        """No blocks."""
        heads, width = place.heads, selector.width(place.layer.key_width)
        return Archived(
            Layout(place, block, 1 if apart else heads), selector, apart,
            summary=Rows.empty((heads, selector.rows(block), width)), coarse=Rows.empty((2, heads, width)),
        )  # fmt: skip

    def __len__(self) -> int:
        return self.count

    @property
    def _each(self) -> int:
        """Rows of the store per block."""
        return self.layout.place.heads if self.apart else 1

    @property
    def beside(self) -> int:
        """Bytes of main memory per row of the store for summaries and boxes."""
        place = self.layout.place
        wide = place.heads * self.selector.width(place.layer.key_width) * 4
        return (wide * self.selector.rows(self.layout.block) + -(-2 * wide // GROUP)) // self._each + 1

    @property
    def least(self) -> int:
        """Bytes of main memory for one block."""
        return self._each * Line(self.layout.nbytes, self.beside).least

    @property
    def oldest(self) -> int:
        """The first block that may still be there."""
        return 0 if self.store is None else -(-self.store.oldest // self._each)

    @property
    def live(self) -> int:
        """Blocks that can be read."""
        return max(0, self.count - self.oldest)

    # -- writing ------------------------------------------------------------------------------------------------

    def seal(self, entries: Entries, query: Tensor) -> Archived:
        """With whole blocks of raw entries behind; `query` [H, g, U, D] are those of the unit."""
        size, heads = self.layout.block, self.layout.place.heads
        blocks = len(entries) // size
        store = self._open()
        if len(store) > self.count * self._each:
            store.truncate(self.count * self._each)
        if self.apart:
            rows = torch.stack([self.layout.pack(_head(entries, h)) for h in range(heads)], dim=1).flatten(0, 1)
        else:
            rows = self.layout.pack(entries)
        store.append(rows)
        keys = entries.key.unflatten(1, (blocks, size)).float()  # [H, n, B, D]
        query, table = query.float(), self.table
        if table is None:
            table = self.selector.calibrate(keys[:, 0], query)
        new = torch.stack([self.selector.summary(keys[:, i], query, table) for i in range(blocks)]).cpu()
        ends = (int(entries.seen.min()) if not self.count else self.ends[0], int(entries.seen.max()))
        grown = replace(
            self, store=store, count=self.count + blocks, summary=self.summary.append(new), table=table, ends=ends
        )
        return grown._grouped()._trimmed()

    def _open(self) -> BlockStore:
        if self.store is not None:
            return self.store
        place = self.layout.place
        pool = place.pool()
        root = pool.open((self.layout.nbytes,), torch.uint8, f"{place.label}/{next(_SERIAL)}", beside=self.beside)
        line: BlockStore = root.fork(0)  # a fork is closed when nobody refers to it any more
        root.close()
        return line

    def _grouped(self) -> Archived:
        """With boxes of the groups that are whole now."""
        coarse, summary = self.coarse, self.summary
        while (len(coarse) + 1) * GROUP <= len(summary):
            start = len(coarse) * GROUP
            pieces = [p[max(0, start - at) : max(0, start + GROUP - at)] for at, p in _offsets(summary.parts)]
            coarse = coarse.append(self.selector.box(torch.cat(pieces))[None])
        return replace(self, coarse=coarse) if coarse is not self.coarse else self

    def _trimmed(self) -> Archived:
        """Without the summaries of blocks that were dropped, once they are a quarter; and counted by the pool."""
        gone = (self.oldest - self.first) // GROUP * GROUP
        out = self
        if gone >= max(GROUP, len(self.summary) // 4):
            out = replace(
                self, first=self.first + gone, summary=self.summary.from_row(gone),
                coarse=self.coarse.from_row(gone // GROUP), ends=(self.ends[0], self.ends[1]),
            )  # fmt: skip
        assert out.store is not None
        out.store.pool.count_in(*out.summary.buffers, *out.coarse.buffers)
        return out

    # -- reading ------------------------------------------------------------------------------------------------

    def choose(self, query: Tensor, slots: int, *, together: bool = False) -> Tensor:
        """[C, k] ids of the blocks that queries [H, g, C, D] read, in stream order; [C, H, k] where heads part.

        Fewer than `slots` if there are not more.  `together`: one choice for all, by the mean of the queries.
        """
        first = self.oldest
        count = 1 if together else query.shape[2]
        if self.count - first <= slots:
            ids = torch.arange(first, self.count)
            return ids.expand(count, *([len(query)] if self.apart else []), -1)
        query = query.float().mean(2, keepdim=True) if together else query.float()
        scale = self.layout.place.layer.key_width**-0.5
        asked = self.selector.project(query * scale, self.table).cpu()
        which, scores = search(
            self.selector, self.summary.parts, self.coarse.parts, asked, max(0, first - self.first),
            _FLAT if together else _ASKED, max(16, slots // 4) * (1 if together else 4),
        )  # fmt: skip
        weights = shares(scores).sum(1)  # [H, C, m]
        weights = weights.transpose(0, 1) if self.apart else weights.sum(0)  # [C, (H,) m]
        best = weights.topk(min(slots, len(which)), dim=-1).indices
        return self.first + which[best].sort(-1).values

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
        rows, there = self.store.fetch(ids * self._each)
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
        rows, there = self.store.fetch((ids * self._each + torch.arange(place.heads)[:, None]).flatten())
        rows, there = rows.view(*ids.shape, -1), there.view(ids.shape)
        return self.layout.unpack(rows if there.all() else rows[:, there.all(0)], self.shift)  # heads hold equally many

    # -- as a value of a state ----------------------------------------------------------------------------------

    @property
    def pool(self) -> Any:
        """The pool behind the store, None as long as there is none."""
        return None if self.store is None else self.store.pool

    def tensors(self) -> Iterator[Tensor]:
        """What is counted on the device: the calibrated table."""
        if self.table is not None:
            yield self.table

    def fork(self) -> Archived:
        """For another life."""
        return self if self.store is None else replace(self, store=self.store.fork(self.count * self._each))

    def moved(self, by: int) -> Archived:
        """As if `by` more tokens had passed."""
        return replace(self, shift=self.shift + by, ends=(self.ends[0] + by, self.ends[1] + by))

    def save(self) -> dict[str, Tensor]:
        """All that can still be read, self-contained."""
        out = {
            "numbers": torch.tensor([self.count, self.first, *self.ends, self.shift]),
            "summary": torch.cat(self.summary.parts), "coarse": torch.cat(self.coarse.parts),
        }  # fmt: skip
        if self.table is not None:
            out["table"] = self.table
        ids = torch.arange(self.oldest * self._each, self.count * self._each)
        if self.store is not None and len(ids):
            out["blocks"], out["present"] = self.store.fetch(ids)
        return out

    def load(self, saved: Mapping[str, Tensor]) -> Archived:
        """The inverse, in the memory's own pool."""
        try:
            count, first, oldest, newest, shift = saved["numbers"].tolist()
            out = replace(
                self, count=count, first=first, ends=(oldest, newest), shift=shift, table=saved.get("table"),
                summary=Rows(self.summary.base.append(saved["summary"]), self.summary.own),
                coarse=Rows(self.coarse.base.append(saved["coarse"]), self.coarse.own),
            )  # fmt: skip
            if count:
                blocks = saved.get("blocks", torch.zeros(0, self.layout.nbytes, dtype=torch.uint8))
                there = saved.get("present", torch.zeros(0, dtype=torch.bool))
                store = out._open()
                store.skip(count * self._each - len(blocks))
                for row, found in zip(blocks, there):
                    store.append(row[None]) if found else store.skip(1)
                out = replace(out, store=store)
                store.pool.count_in(*out.summary.buffers, *out.coarse.buffers)
        except (KeyError, ValueError, RuntimeError) as error:
            raise CompositionError(
                f"the saved archive does not fit this memory ({error}): use the same model, method and budget."
            ) from None
        return out


def _head(entries: Entries, head: int) -> Entries:
    return Entries(**{name: t[head : head + 1] for name, t in entries.columns().items()}, turned=entries.turned)


def _offsets(parts: tuple[Tensor, ...]) -> Iterator[tuple[int, Tensor]]:
    at = 0
    for part in parts:
        yield at, part
        at += len(part)
