"""livevlm: recent entries whole, older ones compressed into time buckets, read by pages when asked.  arXiv:2505.15269

Differs from the paper: what leaves the recent window is compressed unit by unit, scored by the queries of the unit that
ends; places that empty buckets leave go to the highest scores; each token of a question chooses its own pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from penstock.core import Kind, Phase
from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Entries, Frame, Offer, Part, Place, Query, Readable, Sinks, State, Unit, Window
from penstock.memory.retention import Retained, attention, best, check_unit, coarse
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class Bucketed(Retained):
    """Entries compressed so that every time bucket keeps something and what is salient stays wherever it is.

    Time from the oldest entry held to the newest is cut into `size` equal buckets.  The `salient` highest scores stay,
    then the highest whose bucket is still empty, then, where buckets were empty, the highest.  The score is the
    attention of the unit's vision queries (of all, if it has none), averaged over heads: all heads keep the same.

    While a question is asked or answered, only a share `ratio` of the pages of `page` entries is read: those whose mean
    key has the largest product with the query, summed over heads.
    """

    needs_queries: ClassVar[bool] = True
    needs_mass: ClassVar[bool] = True

    salient: int = 0
    page: int = 16
    ratio: float = 1.0

    def score(self, state: State, unit: Unit, place: Place) -> Tensor:
        """[1, T]: the mean share of attention."""
        asking = torch.ones(unit.count, dtype=torch.bool) if unit.kind is None else unit.kind == Kind.VISION
        if not bool(asking.any()):
            asking = ~asking
        given = attention(state["held"], unit, place)  # [Hq, U, T]
        weight = (asking.float() / asking.sum()).to(given.device)
        return coarse((given * weight[:, None]).sum(1).mean(0))[None]

    def chosen(self, state: State, unit: Unit, place: Place) -> Tensor:
        held: Entries = state["held"]
        index = bucketed(self.score(state, unit, place)[0].cpu(), held.seen[0], self.stays, self.salient)
        return index.expand(place.heads, -1)

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, state: State, query: Query, frame: Frame, place: Place) -> Iterator[Offer]:
        """Everything while the stream is read; chosen pages for questions and answers, numbered without holes."""
        held: Entries = state["held"]
        pages = -(-len(held) // self.page)
        wanted = math.ceil(self.ratio * pages)
        if query.phase == Phase.INGEST or wanted >= pages:
            yield from super().read(state, query, frame, place)
            return
        page = torch.arange(len(held)) // self.page
        chosen = self.pages(held.key, page, query, wanted)  # [C, wanted]
        start = 0
        while start < len(query):
            stop = start + 1  # queries in a row that chose the same pages read together
            while stop < len(query) and torch.equal(chosen[stop], chosen[start]):
                stop += 1
            index = torch.isin(page, chosen[start]).nonzero()[:, 0]
            some, position = held.take(index), frame.of(held)
            # Right before what is newer: of the numbers of all that is held, the last ones.
            position = position[:, -len(index) :] if frame.policy == "contiguous" else position[:, index]
            yield Readable(
                some.key, some.value, position, frame.query, some.turned, some.kind, None, None, (start, stop)
            )
            start = stop

    def pages(self, key: Tensor, page: Tensor, query: Query, wanted: int) -> Tensor:
        """[C, wanted] int64, ascending: pages for each query; key [H, T, D] raw, page [T] of each entry."""
        count = int(page[-1]) + 1
        there = page.to(key.device)
        total = torch.zeros(key.shape[0], count, key.shape[2], device=key.device).index_add_(1, there, key.float())
        mean = total / torch.bincount(there, minlength=count)[:, None]  # [H, P, D]
        asked = query.by_head(query.raw.float()).sum(1)  # [H, C, D]
        return best(coarse(torch.matmul(asked, mean.transpose(-1, -2)).sum(0)).cpu(), wanted)


def bucketed(score: Tensor, seen: Tensor, count: int, salient: int) -> Tensor:
    """[count] int64, ascending: what stays of score [T] and seen [T], with `count` buckets of one entry each."""
    total = len(seen)
    first, last = seen[0], seen[-1]
    bucket = (seen - first) * count // (last - first + 1)
    order = total - 1 - torch.argsort(score.flip(0), descending=True, stable=True)  # highest first, then newest
    of = bucket[order]
    grouped = torch.argsort(of, stable=True)
    runs = of[grouped]
    rank = torch.empty_like(grouped)  # among those of its bucket, 0 for the best
    rank[grouped] = torch.arange(total) - torch.searchsorted(runs, runs)
    turn = torch.where(rank == 0, 1, 2)
    turn[:salient] = 0
    return order[torch.argsort(turn, stable=True)[:count]].sort().values


@dataclass(frozen=True)
class LiveVLM(Method):
    """For video that is asked about later: compression needs no question, and questions read a part of what is left.

    After `sinks` first entries, the newest `recent` share of the budget is kept whole, the rest of the budget holds
    what was compressed.  A question reads a share `ratio` of its pages of `page` entries.  `salient` is the share that
    stays by score alone, whatever its time.  `positions`: `contiguous` numbers what is read anew, without holes.
    """

    name: ClassVar[str] = "livevlm"
    title: ClassVar[str] = "Compression by time buckets, retrieval by pages"
    source: ClassVar[str] = "arXiv:2505.15269"
    differs: ClassVar[str] = "compresses unit by unit; empty buckets go to high scores; each question token chooses"
    slots: ClassVar[tuple[str, ...]] = ("retention", "retrieval", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    unit: ClassVar[int] = 8

    sinks: int = 4
    recent: float = 0.25
    salient: float = 0.25
    page: int = 16
    ratio: float = 0.4
    positions: Literal["contiguous", "stream"] = "contiguous"

    def lossless(self) -> LiveVLM:
        """Questions read every page."""
        return replace(self, ratio=1.0)

    def cascade(self, budget: int | None) -> Cascade:
        check_unit(self.unit)
        if not 0 <= self.salient <= 1 or not 0 < self.ratio <= 1 or self.page < 1 or self.recent < 0:
            raise UsageError("livevlm needs shares recent, salient and ratio up to 1, and pages of 1 entry or more.")
        if budget is None:
            raise BudgetError("livevlm needs a budget: give entries (4096) or bytes (64MiB).")
        recent = max(1, int(self.recent * budget))
        size = budget - self.sinks - self.unit - recent
        if size < 1 or self.sinks < 0:
            raise BudgetError(
                f"a budget of {budget} has no room beside {self.sinks} sinks, {recent} recent entries and a unit of "
                f"{self.unit}: raise the budget, or keep fewer of these (livevlm:sinks=N,recent=SHARE)."
            )
        part = Bucketed(size, salient=int(self.salient * size), page=self.page, ratio=self.ratio)
        segments: tuple[Part, ...] = (Sinks(self.sinks), Window(recent), part)
        return Cascade(segments, self.positions, self.unit)
