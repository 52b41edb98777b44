"""Which blocks of an archive queries read: those that the index proposes and those of the open run are compared by the
share of attention that their summaries promise.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from penstock.memory.chooser import Chooser
from penstock.memory.lending import Lent
from penstock.memory.retrieval import ranked, shares

if TYPE_CHECKING:
    from penstock.memory.archive_blocks import Archived

_LOOK, _LISTS = 4, 4  # blocks looked at for one that a token of a question reads, in so many lists of the index
_ALL = 512  # blocks that several tokens of a question look at together, where one looks at fewer
_GLANCE, _FEW = 2, 2  # as the first two, for a unit while reading and for a token of an answer


def choose(
    blocks: Archived, query: Tensor, slots: int, together: bool, asks: bool, chooser: Chooser | None
) -> Tensor:  # fmt: skip
    """As Archived.choose."""
    first = blocks.oldest
    count = 1 if together else query.shape[2]
    if blocks.count - first <= slots:
        ids = torch.arange(first, blocks.count)
        return ids.expand(count, *([len(query)] if blocks.apart else []), -1)
    query = query.float().mean(2, keepdim=True) if together else query.float()
    scale = blocks.layout.place.layer.key_width**-0.5
    asked = blocks.selector.project(query * scale, blocks.table).cpu()
    most, near = (_LOOK * slots, _LISTS) if asks and not together else (_GLANCE * slots, _FEW)
    most = max(most, min(most * count, _ALL))
    most = max(most, slots - (blocks.count - max(first, blocks.base)))
    which, weights = weighed(blocks, asked, first, most, near, chooser)
    best = ranked(weights).topk(min(slots, len(which)), dim=-1).indices
    return which[best].sort(-1).values


def weighed(
    blocks: Archived, asked: Tensor, first: int, most: int, lists: int, chooser: Chooser | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Blocks [m], up to `most` of the index, and the shares [C, (H,) m] that queries [H, g, C, D'] give them."""
    chooser = chooser if chooser is not None and chooser.knows(blocks.selector, blocks.layout) else None
    with ExitStack() as borrowed:
        ids, found = _candidates(blocks, asked, first, most, lists, borrowed, chooser)
        if not len(ids):  # all that was proposed is lost
            return ids, asked.new_zeros(asked.shape[2], *([len(asked)] if blocks.apart else []), 0)
        if chooser is not None:
            return ids, chooser.shares(blocks.selector, blocks.layout, found, asked, blocks.table, blocks.apart)
    scores = [blocks.selector.score(summary, asked) for summary in found if isinstance(summary, Tensor)]
    weights = shares(torch.cat(scores, dim=-1)).sum(1)  # [H, C, m]
    return ids, weights.transpose(0, 1) if blocks.apart else weights.sum(0)


def _candidates(
    blocks: Archived, asked: Tensor, first: int, most: int, lists: int, borrowed: ExitStack, chooser: Chooser | None
) -> tuple[Tensor, list[Tensor | Lent]]:  # fmt: skip
    """Blocks [m], up to `most` of the index, and what they are scored by: summaries [n, H, r, D'], or, by a chooser,
    blocks that are lent until `borrowed` is left."""
    near, ids = max(first, blocks.base), []
    found: list[Tensor | Lent] = []
    if first < blocks.base:
        some = blocks.index.search(asked, first, most, lists, chooser)
        each = some.expand(blocks.layout.place.heads, -1) if blocks.apart else some
        lent = None if chooser is None else borrowed.enter_context(blocks.lent(each))
        if lent is not None:
            ids.append(some)
            found.append(lent)
        else:
            summary, there = _looked_at(blocks, some)
            if len(summary):
                ids.append(some[there])
                found.append(summary)
    if near < blocks.count:
        ids.append(torch.arange(near, blocks.count))
        found += blocks.summary.pieces(near - blocks.base)
    return torch.cat(ids) if ids else torch.zeros(0, dtype=torch.int64), found


def _looked_at(blocks: Archived, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(summaries [m, H, r, D'], whole [n]) of blocks [n], those that are whole."""
    assert blocks.store is not None
    names = ("key", "chosen") if blocks.layout.marked else ("key",)
    part = blocks.layout.bytes_of(*names)
    part = slice(part.start, -(-part.stop // 8) * 8)  # keys of every row are aligned
    each = torch.arange(blocks.each)
    rows, there = blocks.store.fetch_bytes((ids[:, None] * blocks.each + each).flatten(), part)
    rows, there = rows.view(len(ids), blocks.each, -1), there.view(len(ids), -1).all(1)
    rows = rows if there.all() else rows[there]
    columns = [blocks.layout.column(rows, name, part.start).flatten(1, 2) for name in names]  # [m, H, B, ...]
    keys = columns[0].transpose(0, 1).contiguous().float().transpose(0, 1)  # head by head, as they are multiplied
    table = None if blocks.table is None else blocks.table.cpu()
    return blocks.selector.summary(keys, columns[1].bool() if blocks.layout.marked else None, table), there
