"""flash-vstream: a memory of fixed size for frames: clusters, a digest, and the frames nearest to the largest clusters.
arXiv:2406.08085, arXiv:2506.23825

Differs from the paper: it works on keys and values instead of image features, so nothing is learned; a new frame is
shared out over the digest by likeness; clusters carry their counts and times; no bank of all frames: what is retrieved
now and the frame that arrives compete.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Entries, Part, Place, Sinks, State, Unit, Window
from penstock.memory.summaries import Summary, room
from penstock.methods.base import LAWS, Method


def pooled(frame: Entries, side: int) -> Entries:
    """Means of keys and values over patches of `side` x `side` tokens of a square frame.

    A patch stands where its first token stands.
    """
    edge = math.isqrt(len(frame)) // side
    grid = torch.arange(len(frame)).view(edge, side, edge, side).transpose(1, 2).reshape(-1, side * side)
    first = frame.take(grid[:, 0])
    key, value = (x[:, grid.to(x.device)].mean(2) for x in (frame.key, frame.value))
    return replace(first, key=key, value=value)


@dataclass(frozen=True)
class FlashMemory(Summary):
    """Three memories of the frames of `frame` tokens that reach it, together at most `entries`.

    Clusters: `temporal` frames at half resolution, by k-means of `rounds` rounds over the old clusters, weighted by how
    many frames each stands for, and the new frame.  Digest: `abstract` means of whole frames; a new frame moves them,
    by likeness and by `ratio` in all.  Retrieved: `frames` whole frames, those nearest to the largest clusters.
    """

    frame: int
    temporal: int
    abstract: int
    frames: int = 3
    ratio: float = 0.2
    rounds: int = 10

    @property
    def entries(self) -> int:
        return self.abstract + self.temporal * self.patches + self.frames * self.frame

    @property
    def patches(self) -> int:
        """Tokens of a frame at half resolution."""
        return self.frame // 4

    def nbytes(self, place: Place) -> int:
        return (super().nbytes(place) or 0) + 8 + 16 * self.temporal

    def begin(self, place: Place) -> State:
        return {
            **super().begin(place),  # digest, clusters, retrieved frames, in this order
            "absorbed": torch.zeros(1, dtype=torch.int64),
            "weight": torch.zeros(0, dtype=torch.float64),  # of each cluster
            "time": torch.zeros(0, dtype=torch.float64),  # mean index of the first tokens of its frames
        }

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """Frame by frame."""
        rest = self.settle(arriving, place)
        while len(rest):
            frame, rest = rest.split(self.frame)
            state = self._absorb(state, frame)
        return state, None

    def _absorb(self, state: State, frame: Entries) -> State:
        held: Entries = state["held"]
        absorbed = int(state["absorbed"])
        digest, held = held.split(min(absorbed, self.abstract))
        clusters, retrieved = held.split(len(state["weight"]) * self.patches)
        digest = self._digest(digest, pooled(frame, math.isqrt(self.frame)))
        small = pooled(frame, 2)
        clusters, weight, time = self._cluster(clusters, small, state["weight"], state["time"])
        retrieved = self._retrieve(Entries.join([retrieved, frame]), clusters, weight)
        return {
            "held": Entries.join([digest, clusters, retrieved]),
            "absorbed": torch.tensor([absorbed + 1]),
            "weight": weight,
            "time": time,
        }

    def _digest(self, digest: Entries, new: Entries) -> Entries:
        """The first frames fill it; later ones are shared out."""
        if len(digest) < self.abstract:
            return Entries.join([digest, new])
        scale = digest.key.shape[-1] ** -0.5
        share = self.ratio * (digest.key @ new.key.transpose(1, 2) * scale).softmax(1)  # [H, A, 1]
        key = digest.key + share * (new.key - digest.key)
        return replace(digest, key=key, value=digest.value + share * (new.value - digest.value))

    def _cluster(self, clusters: Entries, new: Entries, weight: Tensor, time: Tensor) -> tuple[Entries, Tensor, Tensor]:
        """The clusters with one frame more, in the order of their mean times."""
        points = Entries.join([clusters, new])
        weight = torch.cat([weight, torch.ones(1, dtype=weight.dtype)])
        time = torch.cat([time, new.seen[:1, 0].to(time.dtype)])
        if len(weight) > self.temporal:
            features = self._features(points)
            of = kmeans(features, weight, self.temporal, self.rounds)
            one_hot = torch.nn.functional.one_hot(of, self.temporal).to(weight.dtype) * weight[:, None]  # [N, K]
            total = one_hot.sum(0)
            full = total > 0  # equal frames leave clusters empty
            mean = (one_hot / total.clamp_min(1.0)).T[full]
            time, weight = mean @ time, total[full]
            order = time.argsort(dim=0, stable=True)
            time, weight, mean = time[order], weight[order], mean[order]
            points = self._entries(points.cut(0, self.patches), mean.to(features) @ features, time)
        return points, weight, time

    def _features(self, points: Entries) -> Tensor:
        """[N, F]: keys and values of each of N frames at half resolution, over all heads."""
        both = torch.cat([points.key, points.value], dim=-1)  # [H, N * P, F]
        return both.unflatten(1, (-1, self.patches)).transpose(0, 1).flatten(1)

    def _entries(self, form: Entries, features: Tensor, time: Tensor) -> Entries:
        """Features [K, F] as entries like those of the frame `form`, where their mean times are."""
        heads, wide = form.key.shape[0], form.key.shape[-1]
        number = len(features)
        both = features.view(number, heads, self.patches, -1).transpose(0, 1).flatten(1, 2)
        within = form.seen - form.seen[:, :1]  # [H, P]
        start = time.round().long()[None, :, None]
        seen = (start + within[:, None]).flatten(1)
        index = torch.arange(self.patches).repeat(number)
        like = form.take(index)
        more: dict[str, Any] = {"place": seen} if form.place is not None else {}
        return replace(like, key=both[..., :wide].clone(), value=both[..., wide:].clone(), seen=seen, **more)

    def _retrieve(self, frames: Entries, clusters: Entries, weight: Tensor) -> Entries:
        """Of whole frames those nearest to the largest clusters, each once, in stream order."""
        number = len(frames) // self.frame
        if number <= self.frames or not self.frames:
            return frames.cut(0, self.frames * self.frame)
        small = [pooled(frames.cut(i * self.frame, (i + 1) * self.frame), 2) for i in range(number)]
        apart = _apart(self._features(clusters), self._features(Entries.join(small))).cpu()
        chosen: list[int] = []
        for cluster in weight.argsort(dim=0, descending=True, stable=True)[: self.frames].tolist():
            order = apart[cluster].argsort(dim=0, stable=True).tolist()
            chosen.append(next(i for i in order if i not in chosen))
        whole = torch.arange(self.frame)
        return frames.take(torch.cat([whole + i * self.frame for i in sorted(chosen)]))

    def shift(self, state: State, by: int, place: Place) -> State:
        """Times too."""
        return {**super().shift(state, by, place), "time": state["time"] + by}


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """[N, M]: distances between points [N, F] and [M, F]; zero where only rounding tells them apart."""
    found = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.where(found > 1e-5 * a.norm(dim=1, keepdim=True), found, 0.0)


def kmeans(points: Tensor, weight: Tensor, clusters: int, rounds: int) -> Tensor:
    """[N] int64: the cluster of each weighted point [N, F]; seeds are the heaviest point and, in turn, the farthest."""
    seeds = [int(weight.argmax())]
    apart = _apart(points, points)
    nearest = apart[seeds[0]]
    for _ in range(clusters - 1):
        seeds.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, apart[seeds[-1]])
    centres = points[seeds]
    weight = weight.to(points)
    of = torch.zeros(len(points), dtype=torch.int64)
    for _ in range(rounds):
        of = _apart(points, centres).argmin(1)
        one_hot = torch.nn.functional.one_hot(of, clusters).to(points) * weight[:, None]
        total = one_hot.sum(0)
        centres = torch.where(total[:, None] > 0, one_hot.T @ points / total.clamp_min(1.0)[:, None], centres)
    return of.cpu()


@dataclass(frozen=True)
class FlashVStream(Method):
    """The first frames, the newest ones, and three memories of all between.

    `frame` tokens make a square frame (4, 16 or 64); `sinks` frames stay for ever.  Of the rest `share` goes to the
    memories: half of it to at most `frames` retrieved frames, half to at most `clusters` frames at half resolution and
    as many means of whole frames.  The window gets the rest, in whole frames.
    """

    name: ClassVar[str] = "flash-vstream"
    title: ClassVar[str] = "Clusters, a digest and retrieved frames"
    source: ClassVar[str] = "arXiv:2406.08085, arXiv:2506.23825"
    differs: ClassVar[str] = "on keys and values, nothing learned; clusters keep counts and times; no bank of frames"
    slots: ClassVar[tuple[str, ...]] = ("segments", "summaries", "retrieval", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    frame: int = 16
    sinks: int = 1
    clusters: int = 25
    frames: int = 3
    share: float = 0.75
    positions: Literal["contiguous", "stream"] = "contiguous"

    def cascade(self, budget: int | None) -> Cascade:
        if self.frame not in (4, 16, 64):
            raise UsageError(f"a frame of {self.frame} tokens is no square that halves: give frame=4, 16 or 64.")
        if not 0.0 <= self.share < 1.0:
            raise UsageError(f"share cannot be {self.share}: give a share of the budget below 1.")
        left = room(self.name, budget, self.frame, self.sinks * self.frame, self.frame)
        window, clusters, frames = self._sizes(left)
        if not window or (self.share and not clusters):
            least = next(n for n in count(left) if self._sizes(n)[0] and self._sizes(n)[1])
            least += (self.sinks + 1) * self.frame
            raise BudgetError(
                f"a budget of {budget} has no room for the window and the memories of {self.name}: "
                f"give at least {least}, or smaller frames."
            )
        segments: list[Part] = [Sinks(self.sinks * self.frame)] if self.sinks else []
        segments.append(Window(window))
        if clusters:
            segments.append(FlashMemory(self.frame, clusters, clusters, frames))
        return Cascade(tuple(segments), self.positions, self.frame)

    def _sizes(self, left: int) -> tuple[int, int, int]:
        """Entries of the window, clusters, retrieved frames; none of them shrinks where the budget grows."""
        each = self.frame // 4 + 1
        long = int(self.share * left)
        clusters = min(self.clusters, (long - long // 2) // each)
        frames = min(self.frames, clusters, long // 2 // self.frame)
        window = left - min(long, self.clusters * each + self.frames * self.frame)
        return window // self.frame * self.frame, clusters, frames

    def lossless(self) -> FlashVStream:
        """All of it is window."""
        return replace(self, share=0.0)
