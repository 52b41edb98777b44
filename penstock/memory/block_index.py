"""Which of very many blocks are worth a closer look: lists of blocks by what their keys are near to.

Vectors of the first blocks are taken as *centres*, per head.  Each block stands in the lists of the centres that its
own vectors are nearest to.  A query looks into the few lists whose centres would take the most of its attention, counts
what that says of the blocks in them, and the best blocks are read and scored exactly:

    query ──► centres ──► the best lists ──► blocks in them, by share ──► keys of the best (archive_blocks.py)

A *run* holds the lists of consecutive blocks.  Runs never change; small ones are joined into larger ones as the stream
grows, and those of blocks that were dropped are let go.  What a search costs depends on how many blocks the lists hold
(a hundredth of all), not on how many blocks there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock.memory.chooser import Chooser
from penstock.memory.retrieval import ranked
from penstock.memory.vector import Buffer

CENTRES = 1024  # per head, at most
_TRAINED = 8192  # vectors that centres are made from, per head, at most
_ROUNDS = 1  # of moving centres to the middle of what is near to them
_LISTS = 512  # that all queries of a step look into together
_LISTED, _ASKING = 8192, 4  # and blocks in them, about, for each of up to so many queries
_JOINED = 4  # runs of one size that become one
_OFFSETS = 1 << 16  # blocks that a run can number
_TILE = 256  # vectors that are compared with all centres at once


class Limits(NamedTuple):
    """How far a search goes."""

    most: int  # blocks that are found
    near: int  # lists that each head of a query looks into
    lists: int  # that all look into together
    listed: int  # blocks in them, about


@dataclass(frozen=True, eq=False)
class Run:
    """Lists of the blocks from `first` to `last`: those of list i are blocks[starts[i]:starts[i + 1]] + first."""

    first: int
    last: int
    blocks: NDArray[np.uint16]
    starts: NDArray[np.int32]
    buffers: tuple[Any, ...] = field(default=(), repr=False)

    @staticmethod
    def of(first: int, last: int, entries: NDArray[np.uint32], lists: int) -> Run:
        """From sorted entries (list << 16 | block - first)."""
        starts = np.searchsorted(entries >> 16, np.arange(lists + 1)).astype(np.int32)
        return Run.made(first, last, (entries & 0xFFFF).astype(np.uint16), starts)

    @staticmethod
    def made(first: int, last: int, blocks: NDArray[np.uint16], starts: NDArray[np.int32]) -> Run:
        """Of its parts; its arrays count as main memory."""
        held = (Buffer(torch.from_numpy(starts)), Buffer(torch.from_numpy(blocks.view(np.int16))))
        return Run(first, last, blocks, starts, held)

    def __len__(self) -> int:
        return self.last - self.first

    def listed(self, lists: NDArray[np.int64]) -> tuple[list[NDArray[np.uint16]], NDArray[np.int32]]:
        """What stands in some lists, each a view, and how much that is."""
        blocks, (starts, stops) = self.blocks, self.starts[np.stack((lists, lists + 1))]
        return [blocks[start:stop] for start, stop in zip(starts.tolist(), stops.tolist())], stops - starts

    def entries(self, first: int) -> NDArray[np.uint32]:
        """As `of` takes them, counted from another first block."""
        lists = np.arange(len(self.starts) - 1, dtype=np.uint32).repeat(np.diff(self.starts))
        return lists << np.uint32(16) | (self.blocks.astype(np.uint32) + np.uint32(self.first - first))


@dataclass(frozen=True, eq=False)
class BlockIndex:
    """An immutable index; `centres` [H, K, D'] are None until the first blocks came."""

    centres: Buffer | None = None
    runs: tuple[Run, ...] = ()
    sizes: Tensor | None = None  # [H, K] float32: blocks in each list
    logs: Tensor | None = None  # [H, 1, K]: their logarithms, -inf where there is nothing

    @staticmethod
    def trained(points: Tensor) -> BlockIndex:
        """Without blocks yet; centres are made from points [n, H, p, D']."""
        rows = points.transpose(0, 1).flatten(1, 2).float()  # [H, n * p, D']
        heads, every, _ = rows.shape
        count = min(every, _TRAINED)
        rows, most = rows[:, torch.linspace(0, every - 1, count).long()], min(number(every), _OFFSETS // heads)
        first = max(1, most // 2)
        centres = rows[:, torch.linspace(0, count - 1, first).long()]
        while centres.shape[1] < most:  # what is rare must not be lost among what is common
            centres = torch.cat((centres, _farthest(rows, centres, min(max(1, most // 8), most - centres.shape[1]))), 1)
        for _ in range(_ROUNDS):
            near = _nearest(rows, centres)
            total = torch.zeros_like(centres).scatter_add_(1, near[..., None].expand_as(rows), rows)
            size = torch.zeros(centres.shape[:2]).scatter_add_(1, near, torch.ones(near.shape))[..., None]
            centres = torch.where(size > 0, total / size.clamp(min=1), centres)
        return BlockIndex(Buffer(centres))

    @property
    def book(self) -> Tensor:
        """[H, K, D']."""
        assert self.centres is not None
        return self.centres.data

    def codes(self, points: Tensor) -> Tensor:
        """[n, H, p] int16: the nearest centre of each point [n, H, p, D']."""
        rows = points.transpose(0, 1).flatten(1, 2).float()
        near = _nearest(rows, self.book).unflatten(1, (len(points), points.shape[2]))
        return near.transpose(0, 1).to(torch.int16)

    def with_run(self, first: int, codes: Tensor, most: int, present: Tensor | None = None) -> BlockIndex:
        """With the blocks from `first` on, by their codes [n, H, p]; runs of up to `most` blocks are joined."""
        heads, lists = self.book.shape[:2]
        number = codes.numpy().astype(np.uint32) + (np.arange(heads, dtype=np.uint32) * lists)[None, :, None]
        entries = number << np.uint32(16) | np.arange(len(codes), dtype=np.uint32)[:, None, None]
        if present is not None:
            entries = entries[present.numpy()]
        run = Run.of(first, first + len(codes), np.unique(entries), heads * lists)
        runs, size = [*self.runs, run], len(run)
        while size * _JOINED <= min(most, _OFFSETS - 1):
            tail = runs[-_JOINED:]
            if len(tail) < _JOINED or any(len(r) != size for r in tail) or tail[0].first % (size * _JOINED):
                break
            start = tail[0].first
            runs[-_JOINED:] = [
                Run.of(start, tail[-1].last, np.sort(np.concatenate([r.entries(start) for r in tail])), heads * lists)
            ]
            size *= _JOINED
        return self._of(tuple(runs))

    def since(self, oldest: int) -> BlockIndex:
        """Without the runs of which every block is older."""
        kept = tuple(run for run in self.runs if run.last > oldest)
        return self if len(kept) == len(self.runs) else self._of(kept)

    def _of(self, runs: tuple[Run, ...]) -> BlockIndex:
        sizes = torch.zeros(self.book.shape[0] * self.book.shape[1])
        for run in runs:
            sizes += torch.from_numpy(np.diff(run.starts))
        sizes = sizes.view(self.book.shape[:2])
        return replace(self, runs=runs, sizes=sizes, logs=sizes.log()[:, None])

    def search(
        self, query: Tensor, oldest: int, most: int, near: int = 2, chooser: Chooser | None = None
    ) -> Tensor:  # fmt: skip
        """[m] int64, sorted: up to `most` blocks, none older than `oldest`, for scaled queries [H, g, C, D'].

        Each head of a query looks into `near` lists; the newest blocks of the index fill up what these do not give.
        """
        runs = [run for run in self.runs if run.last > oldest]
        if not runs:
            return torch.zeros(0, dtype=torch.int64)
        begin, end = max(oldest, runs[0].first), runs[-1].last
        if end - begin <= most:
            return torch.arange(begin, end)
        if chooser is not None:
            limits = Limits(most, near, _LISTS, _LISTED * min(query.shape[2], _ASKING))
            return chooser.search(self, query, begin, limits)
        some, worth = _worth(runs, *self._lists(query, near))
        least, end = max(0, oldest - runs[0].first), end - runs[0].first
        if least:
            some, worth = some[some >= least], worth[some >= least]
        if len(some) > most:
            some = np.sort(some[np.argpartition(ranked(torch.from_numpy(worth)).numpy(), -most)[-most:]])
        elif len(some) < most:
            others = np.setdiff1d(np.arange(max(least, end - most), end), some)
            some = np.sort(np.concatenate((some, others[len(some) - most :])))
        return torch.from_numpy(some) + runs[0].first

    def _lists(self, query: Tensor, near: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The lists to look into, and how much a block in each is worth: the largest share that some query gives it."""
        assert self.sizes is not None
        assert self.logs is not None
        scores = query.flatten(1, 2) @ self.book.mT  # [H, n, K]
        total = torch.logsumexp(scores + self.logs, -1, keepdim=True)
        value, where = scores.masked_fill_(self.logs.isinf(), -torch.inf).topk(min(near, scores.shape[-1]), dim=-1)
        value = (value - total).exp()
        worth = torch.zeros(self.sizes.shape).scatter_reduce_(1, where.flatten(1), value.flatten(1), "amax").flatten()
        best = worth.topk(min(_LISTS, len(worth)))
        size = self.sizes.flatten()[best.indices]
        limit = _LISTED * min(query.shape[2], _ASKING)
        kept = (best.values > 0) & (size.cumsum(0) - size < limit)  # those that begin within it
        lists: NDArray[np.int64] = best.indices[kept].numpy()
        weights: NDArray[np.float32] = best.values[kept].numpy()
        return lists, weights

    def save(self) -> dict[str, Tensor]:
        """All of it as tensors."""
        if self.centres is None:
            return {}
        bounds = torch.tensor([[run.first, run.last, len(run.blocks)] for run in self.runs]).view(-1, 3)
        out = {"centres": self.book, "bounds": bounds}
        if self.runs:
            out["starts"] = torch.from_numpy(np.stack([run.starts for run in self.runs]))
            out["lists"] = torch.from_numpy(np.concatenate([run.blocks for run in self.runs]).view(np.int16))
        return out

    @staticmethod
    def load(saved: Mapping[str, Tensor]) -> BlockIndex:
        """The inverse; other names may be there."""
        if "centres" not in saved:
            return BlockIndex()
        runs, at = [], 0
        for i, (first, last, size) in enumerate(saved["bounds"].tolist()):
            blocks = saved["lists"][at : at + size].numpy().view(np.uint16)
            runs.append(Run.made(first, last, blocks, saved["starts"][i].numpy()))
            at += size
        return BlockIndex(Buffer(saved["centres"]))._of(tuple(runs))

    @property
    def buffers(self) -> tuple[Any, ...]:
        """What counts as main memory."""
        return ((self.centres,) if self.centres is not None else ()) + tuple(
            b for run in self.runs for b in run.buffers
        )


def number(points: int) -> int:
    """Centres for so many points of the first run."""
    return max(1, min(CENTRES, points // 16))


def _farthest(rows: Tensor, centres: Tensor, count: int) -> Tensor:
    """[H, count, D']: of so many stretches of rows [H, n, D'], the one farthest from its centre."""
    near = _nearest(rows, centres)[..., None].expand_as(rows)
    far = (rows - centres.gather(1, near)).square().sum(-1)  # [H, n]
    ends = torch.linspace(0, rows.shape[1], count + 1).long().tolist()
    found = [start + far[:, start:stop].argmax(1) for start, stop in pairwise(ends)]
    return rows.gather(1, torch.stack(found, 1)[..., None].expand(-1, -1, rows.shape[-1]))


def _nearest(rows: Tensor, centres: Tensor) -> Tensor:
    """[H, n] int64: by distance, a few rows at a time, so that their products stay in the cache."""
    heads, every, number = *rows.shape[:2], centres.shape[1]
    out = np.empty((heads, every), dtype=np.int64)
    products = torch.empty(min(_TILE, every), number)
    for row, centre, nearest in zip(rows, centres, out):
        half, turned = centre.square().sum(-1) / -2, centre.T.contiguous()
        for start in range(0, every, _TILE):
            some = row[start : start + _TILE]
            each = torch.addmm(half, some, turned, out=products[: len(some)])
            each.numpy().argmax(-1, out=nearest[start : start + _TILE])  # torch takes three times as long
    return torch.from_numpy(out)


def _worth(
    runs: Sequence[Run], lists: NDArray[np.int64], weights: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:  # fmt: skip
    """The blocks of consecutive runs that stand in the lists, in order, and what the lists of each are worth together.

    What this takes depends on what the lists hold, not on how many blocks there are.
    """
    pieces, sizes = zip(*(run.listed(lists) for run in runs))
    listed = np.concatenate([piece for some in pieces for piece in some])
    firsts = np.repeat([run.first - runs[0].first for run in runs], [size.sum() for size in sizes])
    which = np.tile(np.arange(len(lists)), len(runs)).repeat(np.concatenate(sizes))
    bits = len(lists).bit_length()
    pairs = (listed + firsts) << bits | which
    pairs.sort()
    blocks, which = pairs >> bits, pairs & (1 << bits) - 1
    new = np.ones(len(blocks), dtype=np.bool_)
    np.not_equal(blocks[1:], blocks[:-1], out=new[1:])
    worth = np.bincount(np.cumsum(new) - 1, weights[which]).astype(np.float64, copy=False)
    return blocks[new], worth
