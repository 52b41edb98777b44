"""savemem: new frames whole, older ones without what repeats, the oldest as anchors.  arXiv:2605.07897

Differs from the paper: tokens are compared by their raw keys in each layer, pseudo-questions are the running means of
the layer's queries, each query asks for itself, and what is not an anchor leaves only when room is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from penstock.errors import UsageError
from penstock.memory import Additive, Cascade, Entries, Frame, Part, Place, Query, Readable, Sinks, State, Unit
from penstock.memory.pooling import directions, frame_size
from penstock.methods.base import LAWS, Method

BONUS = 0.15  # of the semantic score, on the similarity that makes a token a repetition
CUT = 1.5  # a frame that differs from the next by so many times the running mean is a change of scene
NEW = 0.2  # share of the newest in running means
SPREAD = (0.05, 0.3)  # variation of frame scores below which all are read, above which least are
FLOOR = 0.9  # share of the frames that is read at least
NONE = -2.0  # a running mean of nothing yet
GRID = 1 << 14  # similarities are rounded to this: equal tokens must compare as equal, however they were computed


@dataclass(frozen=True)
class ThreeTiers(Part):
    """Short: the newest `short` entries.  Mid and long: up to `cap` entries of the frames before them.

    A frame that leaves the short tier loses its tokens that repeat in the next one (more alike than `similar`) or
    differ from both neighbours less than others do.  Of the rest, the `mid` newest frames are kept; of older ones the
    anchors, by semantic score.  A query that is closer to the short tier than `gate` times the running mean reads that
    alone.
    """

    needs_queries: ClassVar[bool] = True

    frame: int
    short: int
    cap: int
    mid: int
    similar: float
    gate: float

    @property
    def entries(self) -> int:
        return self.short + self.cap

    def nbytes(self, place: Place) -> int:
        wide = place.heads * place.layer.key_width
        means = 4 * wide * (place.group + 1) + 8 * 2
        return self.entries * place.entry_bytes() + 4 * self.cap + means + 4 * self.frame

    def begin(self, place: Place) -> State:
        heads, width = place.heads, place.layer.key_width
        return {
            "older": place.none(),
            "short": place.none(),
            "score": torch.zeros(0, device=place.device),  # semantic score of the older entries
            "asked": torch.zeros(heads * place.group, width, device=place.device),  # running mean of queries
            "near": torch.zeros(heads, width, device=place.device),  # mean direction of the short tier
            "means": torch.full((2,), NONE, dtype=torch.float64),  # running means: affinity, change from frame to frame
            "before": torch.zeros(self.frame, device=place.device),  # what the oldest short frame differs from the last
        }

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """Whole frames arrive; one leaves the short tier for each, and what leaves the older ones is gone."""
        assert unit.query is not None
        both = Entries.join([state["short"], self.settle(arriving, place)])
        affinity, change = state["means"].tolist()
        if len(state["short"]):
            near = float(_affinity(directions(unit.query), state["near"]).mean())
            affinity = near if affinity == NONE else NEW * near + (1 - NEW) * affinity
        recent = unit.query.float().mean(1)
        asked = NEW * recent + (1 - NEW) * state["asked"]
        after: State = {**state, "asked": asked}
        while len(both) > self.short:
            leaving, both = both.split(self.frame)
            if self.cap:
                after, change = self._leave(after, leaving, both, change, place)
        means = torch.tensor([affinity, change], dtype=torch.float64)
        return {**after, "short": both, "near": directions(both.key).mean(1), "means": means}, None

    def _leave(self, state: State, leaving: Entries, rest: Entries, change: float, place: Place) -> tuple[State, float]:
        """One frame goes from the short tier to the older ones."""
        here, after = joint(leaving.key), joint(rest.key[:, : self.frame])
        distance = distances(here, after)
        score = semantic(leaving.key, state["asked"])
        keep = kept(distance, distance if change == NONE else state["before"])
        amount = float(distance.mean())
        if change == NONE or amount <= CUT * change:  # not a change of scene
            keep = keep & (1.0 - distance <= self.similar + BONUS * score)
        older = Entries.join([state["older"], leaving])
        scores = torch.cat([state["score"], score])
        worth = self.worth(older.seen[0], scores.cpu())
        worth[len(state["older"]) :].masked_fill_(~keep.cpu(), -torch.inf)
        count = min(self.cap, len(state["older"]) + int(keep.sum()))
        index = worth.argsort(descending=True, stable=True)[:count].sort().values
        changed = {
            "older": older.take(index),
            "score": scores[index.to(scores.device)],
            "before": distances(after, here),
        }
        return {**state, **changed}, amount if change == NONE else NEW * amount + (1 - NEW) * change

    def worth(self, seen: Tensor, score: Tensor) -> Tensor:
        """[T] float64: who stays longest. The mid tier by age; then anchors, then others, by semantic score."""
        newest = int(seen[-1]) // self.frame
        is_mid = seen // self.frame > newest - self.mid
        anchor = anchors(seen, score, self.frame)
        worth = score.double() + 4.0 * anchor
        return torch.where(is_mid, 16.0 + torch.arange(len(seen)).double(), worth)

    def read(self, state: State, query: Query, frame: Frame, place: Place) -> Iterator[Readable | Additive]:
        """The short tier, and unless the question is about now, the frames of the others that fit it."""
        older, short = state["older"], state["short"]
        for entries, where in ((short, slice(len(older), None)), (older, slice(0, len(older)))):
            if not len(entries):
                continue
            mask = None if entries is short else self.choice(state, query, place)
            position = frame.position
            part = replace(frame, position=None if position is None else position[:, where])
            yield Readable.of(entries, part, mask=mask)

    def choice(self, state: State, query: Query, place: Place) -> Tensor:
        """[C, T] bool: which of the older entries each query reads."""
        asked, older = directions(query.raw), state["older"]
        near = _affinity(asked, state["near"])
        open_ = near < self.gate * max(float(state["means"][0]), 1e-6)
        mean = query.by_head(asked).mean(1)  # [H, C, D]
        alike = torch.einsum("hcd,htd->ct", mean, directions(older.key)) / place.heads
        return fitting(alike.cpu(), older.seen[0] // self.frame) & open_.cpu()[:, None]

    def held(self, state: State) -> Tensor:
        return torch.cat([state["older"].seen, state["short"].seen], dim=1)

    def remembered(self, state: State) -> Tensor:
        return self.held(state).unique()


def _affinity(asked: Tensor, near: Tensor) -> Tensor:
    """[C]: mean cosine of queries [Hq, C, D] of length 1 with the short tier, over its tokens and the heads."""
    group = asked.shape[0] // near.shape[0]
    return torch.einsum("hgcd,hd->c", asked.unflatten(0, (-1, group)), near) / asked.shape[0]


def joint(key: Tensor) -> Tensor:
    """[T, H * D]: raw keys [H, T, D] of all heads as one vector of length 1."""
    return torch.nn.functional.normalize(key.transpose(0, 1).flatten(1).float(), dim=-1)


def rounded(x: Tensor) -> Tensor:
    """To multiples of 1 / GRID."""
    return (x * GRID).round() / GRID


@cache
def width(frame: int) -> int:
    """Columns of a frame's grid of tokens: a power of two, as square as can be."""
    wide = 1
    while wide * wide < frame:
        wide *= 2
    return wide


@cache
def beside(frame: int) -> Tensor:
    """[frame, frame] bool: tokens at most one row and one column apart."""
    cell = torch.arange(frame)
    row, column = cell // width(frame), cell % width(frame)
    return ((row[:, None] - row).abs() <= 1) & ((column[:, None] - column).abs() <= 1)


def distances(here: Tensor, there: Tensor) -> Tensor:
    """[frame]: 1 - the largest cosine of each token with the 3 x 3 tokens around its place in another frame."""
    alike = (here @ there.T).masked_fill(~beside(len(here)).to(here.device), -torch.inf)
    return rounded(1.0 - alike.amax(1))


def otsu(values: Tensor) -> float:
    """The least value of the upper class, where two classes differ most between and least within (Otsu)."""
    ordered = values.double().sort().values
    count = torch.arange(1, len(values), device=values.device)
    low = ordered.cumsum(0)[:-1]
    gap = low / count - (ordered.sum() - low) / (len(values) - count)
    between = (count * (len(values) - count)) * gap.square()
    return float(ordered[1:][int(rounded(between / between.max().clamp_min(1e-12)).argmax())])


def kept(after: Tensor, before: Tensor) -> Tensor:
    """[frame] bool: tokens in the upper class of the distances to either neighbour."""
    return (after >= otsu(after)) | (before >= otsu(before))


def semantic(key: Tensor, asked: Tensor) -> Tensor:
    """[T]: largest cosine of a token's raw key [H, T, D] with the pseudo-questions [Hq, D] of its head."""
    group = asked.shape[0] // key.shape[0]
    questions = directions(asked[None])[0].unflatten(0, (-1, group))  # [H, G, D]
    return rounded(torch.einsum("hgd,htd->hgt", questions, directions(key)).flatten(0, 1).amax(0))


def anchors(seen: Tensor, score: Tensor, frame: int) -> Tensor:
    """[T] bool: the entries that score best among those of their 2 x 2 cells of the frame; of equal ones the first."""
    cell = seen % frame
    row, column = cell // width(frame) // 2, cell % width(frame) // 2
    cluster = (seen // frame) * frame + row * width(frame) + column
    order = score.argsort(descending=True, stable=True)
    order = order[cluster[order].argsort(stable=True)]
    ordered = cluster[order]
    first = torch.ones(len(seen), dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return torch.zeros(len(seen), dtype=torch.bool).scatter_(0, order, first)


def fitting(alike: Tensor, number: Tensor) -> Tensor:
    """[C, T] bool: entries of the frames that fit each query best; all if they fit alike.

    `alike` [C, T] are similarities, `number` [T] ascending the frame of each entry; a frame's score is their mean.
    """
    start, end = torch.searchsorted(number, number), torch.searchsorted(number, number, right=True)
    share = 1.0 / (end - start).double()  # of an entry in its frame
    total = torch.nn.functional.pad(alike.double().cumsum(1), (1, 0))
    score = rounded((total[:, end] - total[:, start]) * share)
    frames = share.sum().round()
    mean = (score * share).sum(1) / frames
    spread = ((score - mean[:, None]).square() * share).sum(1) / frames
    variation = spread.sqrt() / mean.abs().clamp_min(1e-6)
    least, most = SPREAD
    drop = ((variation - least) / (most - least)).clamp(0.0, 1.0) * (1.0 - FLOOR)
    count = (frames * (1.0 - drop) - 1e-6).ceil()  # [C] frames to read
    order = score.argsort(dim=1, descending=True, stable=True)
    ahead = share[order].cumsum(1) - share[order]  # frames that fit better, and what came of this one
    rank = torch.empty_like(ahead).scatter_(1, order, (ahead + 1e-6).floor())
    return rank < count[:, None]


@dataclass(frozen=True)
class SaveMem(Method):
    """A first frame for ever, the newest frames whole, older ones thinned out, the oldest as anchors.

    `frame` tokens of the stream, of whatever kind, make a frame (0: by the budget), as a grid that is as square as can
    be.  `short` is the share of the budget for whole frames, `mid` the frames behind them that only lose what repeats,
    at a similarity above `similar`.  A query that is `gate` times as close to the newest frames as queries usually are
    reads nothing else.  Positions are ranks in the memory (`contiguous`), or the stream's own as in the paper.
    """

    name: ClassVar[str] = "savemem"
    title: ClassVar[str] = "Three tiers: whole, thinned out, anchors"
    source: ClassVar[str] = "arXiv:2605.07897"
    differs: ClassVar[str] = "compares raw keys per layer; pseudo-questions are mean queries; one gate ratio for all"
    slots: ClassVar[tuple[str, ...]] = ("segments", "retention", "retrieval", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    frame: int = 0
    short: float = 0.5
    mid: int = 16
    similar: float = 0.8
    gate: float = 2.0
    positions: Literal["contiguous", "stream"] = "contiguous"

    def lossless(self) -> SaveMem:
        """All frames are whole."""
        return dataclasses.replace(self, short=1.0)

    def cascade(self, budget: int | None) -> Cascade:
        frame = frame_size(self.name, budget, self.frame, 20, 5)
        assert budget is not None
        if not 0.0 < self.short <= 1.0 or self.mid < 0:
            raise UsageError("savemem needs a share of short frames above 0 and up to 1, and mid frames from 0 on.")
        rest = budget - 2 * frame
        short = rest if self.short == 1.0 else max(2, int(self.short * budget) // frame) * frame
        short = min(short, rest)
        cap = rest - short
        tiers = ThreeTiers(frame, short, cap, self.mid, self.similar, self.gate)
        return Cascade((Sinks(frame), tiers), self.positions, frame)
