"""curvestream: a frame is kept, blurred or dropped by how sharply the path of frames turns.  arXiv:2603.19571

Differs from the paper: what a frame shows is the mean raw key of the layer, not a feature of an encoder; clear and
blurred frames wait in queues of their own; a blurred frame is its entries averaged in groups, not resized pixels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from penstock.errors import UsageError
from penstock.memory import Cascade, Entries, Part, Place, Sinks, State, Unit, Window
from penstock.memory.pooling import feature, frame_size, pooled
from penstock.methods.base import LAWS, Method

GROUP = 4  # entries of a blurred frame are means of so many
STILL = 1e-3  # displacements shorter than this have no direction: noise on a still scene would turn at random
TIE = 1e-5  # a score must exceed a threshold by more than rounding: a still scene is dropped


@dataclass(frozen=True)
class Route:
    """Thresholds on the score: motion plus `weight` times curvature, against mean and deviation so far."""

    weight: float = 0.2
    low: float = 0.0
    high: float = 1.0
    decay: float = 0.9

    def score(self, path: Tensor, now: Tensor, frames: int) -> float:
        """Of a frame [F] behind two others, path [2, F]; 0 for the first frame, motion alone for the second."""
        if frames == 0:
            return 0.0
        motion = 1.0 - float(now @ path[1])
        return motion + (self.weight * curvature(path[0], path[1], now) if frames > 1 else 0.0)

    def tier(self, score: float, mean: float, variance: float) -> int:
        """2: clear, 1: blurred, 0: dropped."""
        deviation = variance**0.5 + 1e-12
        return (score > mean + self.low * deviation + TIE) + (score > mean + max(self.low, self.high) * deviation + TIE)


def curvature(older: Tensor, old: Tensor, now: Tensor) -> float:
    """1 - cosine of the angle by which a path through three features turns; 0 where it stands still."""
    before, after = old - older, now - old
    lengths = float(before.norm()), float(after.norm())
    if min(lengths) < STILL:
        return 0.0
    return 1.0 - float(before @ after) / (lengths[0] * lengths[1])


@dataclass(frozen=True)
class Curve(Part):
    """Two queues of frames, oldest out: up to `clear` entries as they came, up to `blurred` means of groups."""

    biased: ClassVar[bool] = True

    clear: int
    blurred: int
    route: Route

    @property
    def entries(self) -> int:
        return self.clear + self.blurred

    def nbytes(self, place: Place) -> int:
        path = 2 * place.heads * place.layer.key_width
        return self.entries * place.entry_bytes(biased=True) + 4 * path + 2 * 8 + 2 * 8

    def begin(self, place: Place) -> State:
        return {
            "held": place.none(biased=True),  # clear, then blurred
            "path": torch.zeros(2, place.heads * place.layer.key_width, device=place.device),
            "counts": torch.zeros(2, dtype=torch.int64),  # clear entries, frames so far (up to 2)
            "moments": torch.zeros(2, dtype=torch.float64),  # mean and variance of scores
        }

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """One frame arrives; what leaves is gone."""
        arriving = self.settle(arriving, place)
        number, frames = state["counts"].tolist()
        mean, variance = state["moments"].tolist()
        now, route = feature(arriving.key), self.route
        score = route.score(state["path"], now, frames)
        if frames:
            mean = score if frames == 1 else route.decay * mean + (1 - route.decay) * score
            variance = route.decay * variance + (1 - route.decay) * (score - mean) ** 2
        tier = route.tier(score, mean, variance) if frames else 2
        clear, blurred = state["held"].split(number)
        clear = _queued(clear, arriving, tier == 2, self.clear)
        blurred = _queued(blurred, pooled(arriving, GROUP), tier == 1, self.blurred)
        return {
            "held": Entries.join([clear, blurred]),
            "path": torch.stack([state["path"][1], now]),
            "counts": torch.tensor([len(clear), min(frames + 1, 2)]),
            "moments": torch.tensor([mean, variance], dtype=torch.float64),
        }, None


def _queued(queue: Entries, frame: Entries, accepted: bool, size: int) -> Entries:
    """The newest `size` entries with the frame, or without it: the same work whichever it is."""
    end = len(queue) + (len(frame) if accepted else 0)
    return Entries.join([queue, frame]).cut(max(0, end - size), end)


@dataclass(frozen=True)
class CurveStream(Method):
    """Sinks, a window, and behind it clear and blurred frames, chosen by motion and curvature.

    `frame` tokens of the stream, of whatever kind, make a frame (0: as many as let the budget hold some 20); the first
    one stays for ever, a quarter of the budget is a window, whose newest frame is always clear.  A frame that leaves it
    scores motion plus `weight` times curvature; above mean + `high` deviations it stays clear, above mean + `low` it is
    blurred to a quarter of its entries, otherwise it is dropped.  Mean and deviation forget by `decay` per frame.
    `blurred` is the share of the budget that blurred frames may take.  Positions are ranks in the memory.
    """

    name: ClassVar[str] = "curvestream"
    title: ClassVar[str] = "Clear and blurred frames by curvature"
    source: ClassVar[str] = "arXiv:2603.19571"
    differs: ClassVar[str] = "a frame's feature is its mean raw key; a queue for each tier; blurring averages entries"
    slots: ClassVar[tuple[str, ...]] = ("segments", "retention", "merging")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    frame: int = 0
    weight: float = 0.2
    low: float = 0.0
    high: float = 1.0
    decay: float = 0.9
    blurred: float = 0.25

    def lossless(self) -> CurveStream:
        """Every frame is clear."""
        return dataclasses.replace(self, low=-1e30, high=-1e30, blurred=0.0)

    def cascade(self, budget: int | None) -> Cascade:
        if not 0.0 <= self.decay < 1.0 or not 0.0 <= self.blurred <= 0.5:
            raise UsageError("curvestream needs a decay from 0 to below 1, and a share of blurred frames up to 0.5.")
        frame = frame_size(self.name, budget, self.frame, 20, 5)
        assert budget is not None
        recent = max(1, budget // (4 * frame)) * frame
        rest = budget - 2 * frame - recent
        blurred = min(int(self.blurred * budget), rest - frame)
        clear = rest - blurred
        part = Curve(clear, blurred, Route(self.weight, self.low, self.high, self.decay))
        return Cascade((Sinks(frame), Window(recent), part), "contiguous", frame)
