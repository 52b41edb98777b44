"""Frames: where the keys of a part and the queries that read them stand, under the cascade's policy.

Only differences of positions matter, so each part may have numbers of its own as long as its queries use them too:

    policy       sinks                    window                 far parts (retained, archived)
    stream       index, query at t        index, query at t      index, query at t
    clamped      index, query at          index, query at t      all keys at 0, query at `cap`
                 min(t, cap)
    contiguous   rank among all entries that are read; the query stands behind all of them

`cap` is the number of entries of the cascade less one.  With kinds that count apart, `index` is the entry's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.memory.entries import Entries


@dataclass(frozen=True)
class Ranks:
    """Contiguous numbers of what a lane holds; made anew where a unit ends."""

    position: tuple[Tensor | None, ...]  # per part: [H, T] of its static entries
    base: tuple[int, ...]  # per part: the first number of what a dynamic part brings in
    total: int


@dataclass(frozen=True)
class Frame:
    """One part's numbers in one step."""

    policy: str  # stream, far, contiguous
    query: Tensor  # [C] int64
    position: Tensor | None = None  # [H, T] of the static entries, if contiguous
    base: int = 0  # first number of dynamic entries, if contiguous

    def of(self, entries: Entries) -> Tensor:
        """[H, T]: where entries stand; those of a dynamic part in the order given (stream order)."""
        if self.policy == "stream":
            return entries.at
        if self.policy == "far":
            return torch.zeros_like(entries.seen)
        if self.position is not None:
            return self.position
        return (self.base + torch.arange(len(entries))).expand(entries.seen.shape)


def frame(policy: str, role: str, at: Tensor, local: Tensor, cap: int, ranks: Ranks | None, index: int) -> Frame:
    """The frame of part `index`: `at` [C] are the queries' stream positions, `local` [C] their index in the unit."""
    if ranks is not None:
        return Frame("contiguous", ranks.total + local, ranks.position[index], ranks.base[index])
    if policy == "clamped" and role == "sinks":
        return Frame("stream", at.clamp(max=cap))
    if policy == "clamped" and role == "far":
        return Frame("far", torch.full_like(at, cap))
    return Frame("stream", at)


def rank(held: Sequence[Tensor | None], spans: Sequence[tuple[int, int, int]]) -> Ranks:
    """Number entries by index seen: `held` [H, T] per part, `spans` (count, oldest, newest) of dynamic parts."""
    static = [(i, seen) for i, seen in enumerate(held) if seen is not None and seen.shape[1]]
    positions: list[Tensor | None] = [None] * len(held)
    total = 0
    seen = torch.cat([s for _, s in static], dim=1) if static else None
    numbers = torch.zeros(0, dtype=torch.int64)
    if seen is not None:
        total = seen.shape[1]
        order = torch.argsort(seen, dim=1, stable=True)
        numbers = torch.empty_like(order).scatter_(1, order, torch.arange(total).expand(order.shape))
    base = [0] * len(held)
    dynamic = sorted((s for s in ((i, *span) for i, span in enumerate(spans)) if s[1]), key=lambda s: s[2])
    before = 0
    for i, count, oldest, _ in dynamic:
        older = int((seen < oldest).sum(1).min()) if seen is not None else 0
        base[i] = older + before
        if seen is not None:
            numbers = numbers + count * (numbers >= older + before)
        before += count
        total += count
    start = 0
    for i, part in static:
        positions[i] = numbers[:, start : start + part.shape[1]]
        start += part.shape[1]
    return Ranks(tuple(positions), tuple(base), total)
