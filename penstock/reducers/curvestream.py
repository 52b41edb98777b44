"""curvestream: route frames by how far and how sharply the path of their features turns.  arXiv:2603.19571
Differs from the paper: features are thumbnails, not DINOv2; curvature counts only where something moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from penstock.core import Frame
from penstock.reducers.base import FrameReducer, Verdict, thumbnail
from penstock.registry import check_range

_STILL = 1e-4  # motion below which the direction of change is noise


@dataclass(frozen=True)
class _State:
    before: np.ndarray | None = None  # features of the frame before the last
    last: np.ndarray | None = None
    mean: float = 0.0
    variance: float = 0.0
    seen: int = 0


@dataclass(frozen=True)
class CurveStream(FrameReducer):
    """Score = motion + `bend` x curvature, against its running mean + k x deviation.

    From `k2` on a frame stays as it is; from `k1` on it is scaled down to `side` pixels; below it is left out.
    `memory`: weight of the past in the running mean and variance.
    """

    name: ClassVar[str] = "curvestream"
    title: ClassVar[str] = "CurveStream's routing by curvature: clear, blurred, left out"
    source: ClassVar[str] = "arXiv:2603.19571"
    differs: ClassVar[str] = (
        "features are thumbnails; no curvature where nothing moves; the queue is the memory's affair"
    )

    bend: float = 0.2
    k1: float = 0.0
    k2: float = 1.0
    memory: float = 0.9  # not stated in the paper's source
    side: int = 224

    def __post_init__(self) -> None:
        check_range(self, bend=(0.0, 1e6), k1=(-math.inf, self.k2), memory=(0.0, 1.0), side=(8, 1 << 16))

    @classmethod
    def noop(cls) -> Self:
        return cls(k1=-math.inf, k2=-math.inf)

    def start(self) -> _State:
        return _State()

    def step(self, state: _State, frame: Frame) -> tuple[_State, Verdict]:
        feature = features(frame.image)
        if state.last is None:
            return _State(None, feature, seen=1), Verdict(frame)
        score = path_score(state.before, state.last, feature, self.bend)
        moved = replace(state, before=state.last, last=feature, seen=state.seen + 1)
        if state.before is None:  # the first score is the first mean
            return replace(moved, mean=score), Verdict(frame, score)
        mean = self.memory * state.mean + (1 - self.memory) * score
        variance = self.memory * state.variance + (1 - self.memory) * (score - mean) ** 2
        moved = replace(moved, mean=mean, variance=variance)
        if score >= _level(mean, variance, self.k2):
            return moved, Verdict(frame, score)
        if score >= _level(mean, variance, self.k1):
            return moved, Verdict(replace(frame, image=_smaller(frame.image, self.side)), score)
        return moved, Verdict(None, score)


def features(image: np.ndarray) -> np.ndarray:
    """[768], unit length: the thumbnail without its mean colour."""
    small = thumbnail(image)
    flat = (small - small.mean((0, 1))).reshape(-1)
    return flat / max(float(np.linalg.norm(flat)), 1e-6)


def path_score(before: np.ndarray | None, last: np.ndarray, now: np.ndarray, bend: float) -> float:
    """Motion 1 - cos(now, last), and `bend` x curvature 1 - cos of the last two steps of the path."""
    motion = float(1 - now @ last)
    if before is None or motion < _STILL:
        return max(motion, 0.0)
    first, second = last - before, now - last
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    curvature = 0.0 if lengths < _STILL**2 else 1 - float(first @ second) / lengths
    return motion + bend * curvature


def _level(mean: float, variance: float, k: float) -> float:
    return -math.inf if k == -math.inf else mean + k * math.sqrt(variance)


def _smaller(image: np.ndarray, side: int) -> np.ndarray:
    """At most `side` pixels a side: means over whole pixels."""
    step = -(-max(image.shape[:2]) // side)
    if step <= 1:
        return image
    height, width = image.shape[0] // step, image.shape[1] // step
    if min(height, width) < 1:
        return image
    cut = image[: height * step, : width * step].reshape(height, step, width, step, 3)
    return cut.mean((1, 3)).round().astype(np.uint8)
