"""Which archived blocks a query reads: summaries of blocks, scores against them, and the search for the best.

Keys are compared raw, with the query turned to the distance at which it would read them.  A summary is a few vectors
per block and head; a *box* is the channel-wise least and greatest of some vectors, and bounds every product with a
vector inside it:

    q . k <= sum over channels of max(q_c * low_c, q_c * high_c)

Boxes of 64 consecutive blocks make the search cheap: the best groups by their bound are searched, not all blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.errors import UsageError

GROUP = 64  # blocks of a coarse box


class Selector(ABC):
    """How blocks are summed up and scored.  Subclasses are frozen dataclasses: declarations, compared by value."""

    def rows(self, block: int) -> int:
        """Vectors per block and head."""
        return 1

    def width(self, key_width: int) -> int:
        """Channels of a vector."""
        return key_width

    def calibrate(self, key: Tensor, query: Tensor) -> Tensor | None:
        """A table made once from the first block: key [H, B, D] and the unit's queries [H, g, U, D]."""
        return None

    def project(self, query: Tensor, table: Tensor | None) -> Tensor:
        """Queries [H, g, C, D] in the channels of the summaries."""
        return query

    @abstractmethod
    def summary(self, key: Tensor, query: Tensor, table: Tensor | None) -> Tensor:
        """[H, r, D'] of a block's raw keys [H, B, D]; `query` [H, g, U, D] are those of the unit in which it closed."""

    def score(self, summary: Tensor, query: Tensor) -> Tensor:
        """[H, g, C, n] float32 of projected queries [H, g, C, D'] with summaries [n, H, r, D']: a block's best."""
        count, _, rows, _ = summary.shape
        keys = summary.transpose(0, 1).flatten(1, 2)  # [H, n * r, D']
        products = query.flatten(1, 2) @ keys.mT
        return products.view(*query.shape[:3], count, rows).amax(-1)

    def box(self, summary: Tensor) -> Tensor:
        """[2, H, D']: least and greatest over summaries [n, H, r, D']."""
        return torch.stack((summary.amin((0, 2)), summary.amax((0, 2))))


def bound(boxes: Tensor, query: Tensor) -> Tensor:
    """[H, g, C, n]: upper bounds of the products with what is in boxes [n, 2, H, D'] for queries [H, g, C, D']."""
    low, high = boxes[:, 0].transpose(0, 1), boxes[:, 1].transpose(0, 1)  # [H, n, D']
    flat = query.flatten(1, 2)
    out = flat.clamp(min=0) @ high.mT + flat.clamp(max=0) @ low.mT
    return out.unflatten(1, query.shape[1:3])


@dataclass(frozen=True)
class Mean(Selector):
    """The mean key of a block (ReKV)."""

    def summary(self, key: Tensor, query: Tensor, table: Tensor | None) -> Tensor:
        return key.mean(1, keepdim=True)


@dataclass(frozen=True)
class Representatives(Selector):
    """The `count` keys of a block that the queries around it attend to most (InfLLM averages them; here the best
    counts)."""

    count: int = 4

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"a block needs a representative, got {self.count}: give 1 or more.")

    def rows(self, block: int) -> int:
        return min(self.count, block)

    def summary(self, key: Tensor, query: Tensor, table: Tensor | None) -> Tensor:
        scores = query.flatten(1, 2) @ key.mT / key.shape[-1] ** 0.5  # [H, g * U, B]
        mass = scores.softmax(-1).sum(1)
        best = mass.topk(self.rows(key.shape[1]), dim=-1).indices.sort(-1).values  # [H, r]
        return key.gather(1, best[..., None].expand(-1, -1, key.shape[-1]))


@dataclass(frozen=True)
class Bounds(Selector):
    """Channel-wise least and greatest keys of each of `pieces` parts of a block (LServe): an upper bound."""

    pieces: int = 4

    def __post_init__(self) -> None:
        if self.pieces < 1:
            raise UsageError(f"a block has one piece or more, got {self.pieces}.")

    def rows(self, block: int) -> int:
        return 2 * min(self.pieces, block)

    def summary(self, key: Tensor, query: Tensor, table: Tensor | None) -> Tensor:
        parts = key.tensor_split(min(self.pieces, key.shape[1]), dim=1)
        return torch.stack([t for part in parts for t in (part.amin(1), part.amax(1))], dim=1)

    def score(self, summary: Tensor, query: Tensor) -> Tensor:
        boxes = summary.unflatten(2, (-1, 2)).transpose(1, 2).flatten(0, 1)  # [n * pieces, H, 2, D]
        each = bound(boxes.transpose(1, 2), query)  # [H, g, C, n * pieces]
        return each.unflatten(-1, (len(summary), -1)).amax(-1)


@dataclass(frozen=True)
class Channels(Selector):
    """A few channels of every key (Double Sparsity), those in which queries and keys are large together.

    They are chosen per head from the first block and the queries of its unit, and kept.
    """

    count: int = 8

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"a label needs a channel, got {self.count}: give 1 or more.")

    def rows(self, block: int) -> int:
        return block

    def width(self, key_width: int) -> int:
        return min(self.count, key_width)

    def calibrate(self, key: Tensor, query: Tensor) -> Tensor:
        size = key.abs().mean(1) * query.abs().mean((1, 2))  # [H, D]
        return size.topk(self.width(key.shape[-1]), dim=-1).indices.sort(-1).values

    def project(self, query: Tensor, table: Tensor | None) -> Tensor:
        assert table is not None
        return query.gather(-1, table[:, None, None].expand(*query.shape[:3], -1))

    def summary(self, key: Tensor, query: Tensor, table: Tensor | None) -> Tensor:
        assert table is not None
        return key.gather(-1, table[:, None].expand(-1, key.shape[1], -1))


def shares(scores: Tensor) -> Tensor:
    """Of scaled scores [H, g, C, n], the share of attention that each candidate would get, head by head.

    Heads speak on different scales: a sum of scores is decided by the loudest, a sum of shares by the head that knows.
    """
    return scores.softmax(-1)


def search(
    selector: Selector, parts: tuple[Tensor, ...], coarse: tuple[Tensor, ...], query: Tensor, first: int, flat: int,
    groups: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Candidates and their scores: (row [m] int64 in the summaries, score [H, g, C, m]).

    `query` is scaled, so that scores are what `shares` takes.  `parts` are summaries [n_i, H, r, D'] one behind the
    other; rows before `first` are not wanted.  Up to `flat` rows are all scored.  Beyond, `coarse` boxes [., 2, H, D']
    of the whole groups are, and the rows of the `groups` best ones for any query, and those that are in no whole group.
    """
    count = sum(len(part) for part in parts)
    if count - first <= flat:
        which = torch.arange(first, count)
    else:
        boxes = torch.cat(coarse)
        whole = len(boxes)
        bounds = bound(boxes, query)
        bounds[..., : first // GROUP] = -torch.inf
        best = shares(bounds).sum((0, 1)).amax(0).topk(min(groups, whole)).indices.sort().values.cpu()
        inside = (best[:, None] * GROUP + torch.arange(GROUP)).flatten()
        which = torch.cat((inside[inside >= first], torch.arange(max(first, whole * GROUP), count)))
    return which, selector.score(_rows(parts, which), query)


def _rows(parts: tuple[Tensor, ...], which: Tensor) -> Tensor:
    """Rows of tensors that lie one behind the other; `which` is sorted."""
    out, before = [], 0
    for part in parts:
        inside = which[(which >= before) & (which < before + len(part))] - before
        if len(inside) == len(part):
            out.append(part)
        elif len(inside):
            out.append(part[inside])
        before += len(part)
    return torch.cat(out) if len(out) != 1 else out[0]
