"""Which blocks of an archive are worth reading, in one native call: shares of attention by summaries (choose.h).

Blocks whose summaries are not at hand are summed up where they lie.  The same shares as PyTorch's up to rounding; what
differs by less than `ranked` tells apart is chosen alike.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from penstock.kernels import library as lib
from penstock.kernels.weights import KINDS
from penstock.memory.archive_layout import Layout
from penstock.memory.block_index import BlockIndex, Limits
from penstock.memory.lending import Lent
from penstock.memory.retrieval import Bounds, Channels, Mean, Representatives, Selector

_SUMMARIES: dict[type[Selector], int] = {Mean: 0, Representatives: 1, Bounds: 2, Channels: 3}  # as pk_summary
_MOST = 64  # vectors of a block that have a score
_PER_THREAD = 1 << 17  # bytes of vectors that are worth another thread


class Choosing:
    """A Chooser; keeps the room that its calls need."""

    def __init__(self) -> None:
        self._library = lib.library()
        self._own = lib.ChoiceOf()
        self._scores = torch.empty(0)
        self._room = torch.empty(0)

    def knows(self, selector: Selector, layout: Layout) -> bool:
        """Summaries of the kinds above, in float32 and bfloat16."""
        rows = selector.rows(layout.block)
        return (
            type(selector) in _SUMMARIES
            and layout.place.dtype in KINDS
            and selector.width(layout.place.layer.key_width) % 4 == 0
            and (rows // 2 if isinstance(selector, Bounds) else rows) <= _MOST
        )

    def shares(
        self, selector: Selector, layout: Layout, candidates: Sequence[Tensor | Lent], query: Tensor,
        table: Tensor | None, apart: bool,
    ) -> Tensor:  # fmt: skip
        """As Chooser.shares."""
        query = query.contiguous()
        heads, group, tokens, width = query.shape
        rows, count = selector.rows(layout.block), sum(len(each) for each in candidates)
        parts = (lib.CandidatesOf * len(candidates))()
        keep: list[Any] = [query, table]
        for part, each in zip(parts, candidates):
            keep.append(_lent(part, each, layout) if isinstance(each, Lent) else _summaries(part, each))
        threads = max(1, min(torch.get_num_threads(), heads * count * rows * width * 4 // _PER_THREAD))
        room = threads * self._library.pk_choice_room(width)
        if self._room.numel() < room:
            self._room = torch.empty(room)
        if self._scores.numel() < heads * group * tokens * count:
            self._scores = torch.empty(heads * group * tokens * count * 5 // 4)
        shares = torch.empty((tokens, heads, count) if apart else (tokens, count))
        own = self._own
        own.query, own.parts, own.part_count = query.data_ptr(), ctypes.addressof(parts), len(parts)
        own.channels = None if table is None else table.data_ptr()
        own.scores, own.room, own.shares = self._scores.data_ptr(), self._room.data_ptr(), shares.data_ptr()
        own.block, own.kv_heads, own.group, own.tokens, own.width = layout.block, heads, group, tokens, width
        own.key_width, own.rows, own.summary = layout.place.layer.key_width, rows, _SUMMARIES[type(selector)]
        own.stored, own.apart, own.threads = KINDS[layout.place.dtype], int(apart), threads
        self._library.pk_choice_run(ctypes.byref(own))
        return shares

    def search(self, index: BlockIndex, query: Tensor, oldest: int, limits: Limits) -> Tensor:
        """As Chooser.search."""
        query, book = query.contiguous(), index.book
        assert index.sizes is not None
        assert index.logs is not None
        heads, lists, width = book.shape
        queries = query.shape[1] * query.shape[2]
        if self._scores.numel() < heads * lists * (queries + 1):
            self._scores = torch.empty(heads * lists * (queries + 1))
        runs, found = _runs(index), torch.empty(limits.most, dtype=torch.int64)
        own = lib.SearchOf(
            query=query.data_ptr(), book=book.data_ptr(), sizes=index.sizes.data_ptr(), logs=index.logs.data_ptr(),
            runs=ctypes.addressof(runs), worth=self._scores.data_ptr(), found=found.data_ptr(), oldest=oldest,
            scores=self._scores.data_ptr() + 4 * heads * lists, most=limits.most, limit=limits.listed,
            run_count=len(runs), kv_heads=heads, queries=queries, lists=lists, width=width, near=limits.near,
            best=limits.lists, threads=max(1, min(torch.get_num_threads(), book.numel() * queries * 4 // _PER_THREAD)),
        )  # fmt: skip
        count = self._library.pk_search_run(ctypes.byref(own))
        if count < 0:
            raise MemoryError("there is no memory for a search among blocks")
        return found[:count]


def _runs(index: BlockIndex) -> Any:
    """The runs of an index as the library takes them; made once, for an index never changes."""
    found = index.__dict__.get("_runs")
    if found is None:
        found = (lib.BlockRun * len(index.runs))()
        for own, run in zip(found, index.runs):
            own.blocks, own.starts = run.blocks.ctypes.data, run.starts.ctypes.data
            own.first, own.last = run.first, run.last
        index.__dict__["_runs"] = found
    return found


def _summaries(part: Any, rows: Tensor) -> Tensor:
    """Vectors [n, H, r, D'] that lie head by head; gives what must not go."""
    by_head = rows.transpose(0, 1)
    if not by_head[0].is_contiguous():
        by_head = by_head.contiguous()
    part.rows, part.blocks, part.count = by_head.data_ptr(), None, by_head.shape[1]
    part.rows_head = by_head.stride(0)
    return by_head


def _lent(part: Any, lent: Lent, layout: Layout) -> Any:
    """Blocks where they lie."""
    of_key = layout.bytes_of("key")
    part.rows, part.blocks, part.count = None, lent.addresses.ctypes.data, len(lent)
    part.blocks_head = len(lent) if lent.addresses.ndim == 2 else 0
    part.key_at, part.key_head = of_key.start, layout.head_bytes("key")
    part.marked_at = -1
    if layout.marked:
        part.marked_at, part.marked_head = layout.bytes_of("chosen").start, layout.head_bytes("chosen")
    return lent.addresses
