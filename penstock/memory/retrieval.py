"""How archived blocks are summed up and scored: summaries of blocks, and scores against them.

Keys are compared raw, with the query turned to the distance at which it would read them.  A summary is a few vectors
per block and head; a *box* is the channel-wise least and greatest of some vectors, and bounds every product with a
vector inside it:

    q . k <= sum over channels of max(q_c * low_c, q_c * high_c)

Which of many blocks are scored at all is block_index.py's topic.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.errors import UsageError

# Faster ways to compute `Bounds.score`, by kind of device; filled by whoever has one (models/gpu.py).
SCORERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}


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

    def chosen(self, key: Tensor, query: Tensor) -> Tensor | None:
        """[n, H, B] bool: entries that the queries [H, g, U, D] single out in blocks [n, H, B, D]; None: not needed."""
        return None

    def marks(self, block: int) -> bool:
        """Whether summaries of blocks need what `chosen` gives."""
        return False

    @abstractmethod
    def summary(self, key: Tensor, chosen: Tensor | None, table: Tensor | None) -> Tensor:
        """[n, H, r, D'] of raw keys of blocks [n, H, B, D]."""

    def points(self, summary: Tensor) -> Tensor:
        """[n, H, p, D'] of summaries: vectors with which a query of this block has large products."""
        return summary

    def score(self, summary: Tensor, query: Tensor) -> Tensor:
        """[H, g, C, n] float32 of projected queries [H, g, C, D'] with summaries [n, H, r, D']: a block's best."""
        keys = summary.transpose(0, 1).flatten(1, 2)  # [H, n * r, D'], a view of what lies head by head
        return _best(query.flatten(1, 2) @ keys.mT, summary.shape[2]).unflatten(1, query.shape[1:3])


def bound(boxes: Tensor, query: Tensor) -> Tensor:
    """[H, g, C, n]: upper bounds of the products with what is in boxes [n, 2, H, D'] for queries [H, g, C, D']."""
    low, high = boxes[:, 0].transpose(0, 1), boxes[:, 1].transpose(0, 1)  # [H, n, D']
    flat = query.flatten(1, 2)
    out = flat.clamp(min=0) @ high.mT + flat.clamp(max=0) @ low.mT
    return out.unflatten(1, query.shape[1:3])


@dataclass(frozen=True)
class Mean(Selector):
    """The mean key of a block (ReKV)."""

    def summary(self, key: Tensor, chosen: Tensor | None, table: Tensor | None) -> Tensor:
        return key.mean(2, keepdim=True)


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

    def marks(self, block: int) -> bool:
        return self.count < block

    def chosen(self, key: Tensor, query: Tensor) -> Tensor | None:
        block = key.shape[2]
        if not self.marks(block):
            return None
        scores = query.flatten(1, 2) @ key.mT / key.shape[-1] ** 0.5  # [n, H, g * U, B]
        best = scores.softmax(-1).sum(2).topk(self.count, dim=-1).indices
        return torch.zeros(key.shape[:3], dtype=torch.bool, device=key.device).scatter_(-1, best, True)

    def summary(self, key: Tensor, chosen: Tensor | None, table: Tensor | None) -> Tensor:
        if chosen is None:
            return key
        which = chosen.nonzero()[:, -1].view(*key.shape[:2], self.count)  # in the order of the block
        return key.gather(2, which[..., None].expand(-1, -1, -1, key.shape[-1]))


@dataclass(frozen=True)
class Bounds(Selector):
    """Channel-wise least and greatest keys of each of `pieces` parts of a block (LServe): an upper bound."""

    pieces: int = 4

    def __post_init__(self) -> None:
        if self.pieces < 1:
            raise UsageError(f"a block has one piece or more, got {self.pieces}.")

    def rows(self, block: int) -> int:
        return 2 * min(self.pieces, block)

    def summary(self, key: Tensor, chosen: Tensor | None, table: Tensor | None) -> Tensor:
        parts = key.tensor_split(min(self.pieces, key.shape[2]), dim=2)
        return torch.stack([t for part in parts for t in (part.amin(2), part.amax(2))], dim=2)

    def points(self, summary: Tensor) -> Tensor:
        """The middles."""
        return summary.unflatten(2, (-1, 2)).mean(3)

    def score(self, summary: Tensor, query: Tensor) -> Tensor:
        if summary.device.type in SCORERS:
            return SCORERS[summary.device.type](summary, query)
        boxes = summary.transpose(0, 1).unflatten(2, (-1, 2)).flatten(1, 2)  # [H, n * pieces, 2, D]
        each = bound(boxes.permute(1, 2, 0, 3), query)  # [H, g, C, n * pieces]
        return _best(each.flatten(1, 2), summary.shape[2] // 2).unflatten(1, query.shape[1:3])


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

    def summary(self, key: Tensor, chosen: Tensor | None, table: Tensor | None) -> Tensor:
        assert table is not None
        return key.gather(-1, table[None, :, None].expand(len(key), -1, key.shape[2], -1))


def _best(products: Tensor, rows: int) -> Tensor:
    """[H, m, n] of [H, m, n * rows]: the greatest of each `rows` neighbours."""
    return products if rows == 1 else torch.nn.functional.max_pool1d(products, rows)


def shares(scores: Tensor) -> Tensor:
    """Of scaled scores [H, g, C, n], the share of attention that each candidate would get, head by head.

    Heads speak on different scales: a sum of scores is decided by the loudest, a sum of shares by the head that knows.
    """
    return scores.softmax(-1)


def ranked(weights: Tensor) -> Tensor:
    """Weights [..., m] of blocks in stream order as int64 that sort alike, where of equals the newer comes first.

    A token that comes again has the same raw key in the first layer, so equal weights are common, and rounding must not
    choose among them: what differs by less than a part in some thousand counts as equal.
    """
    steps = (weights.clamp(min=1e-30).log2() * 4096).round().to(torch.int64)
    count = weights.shape[-1]
    return steps * count + torch.arange(count, device=weights.device)
