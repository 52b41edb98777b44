"""similar-frames: skip frames at random, the more likely the more they look like the last one kept.  arXiv:2312.12491
Differs from the paper: the counter of skips starts again at every kept frame and its cap is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from penstock.core import Frame
from penstock.reducers.base import FrameReducer, Verdict, thumbnail
from penstock.registry import check_range


@dataclass(frozen=True)
class _State:
    kept: np.ndarray | None = None  # [side * side * 3], unit length: the last frame that was kept
    skipped: int = 0  # since then
    seen: int = 0  # frames so far: the place in the random sequence


@dataclass(frozen=True)
class SimilarFrames(FrameReducer):
    """Skips with probability 1 - (1 - cosine) / (1 - threshold); `most`: skips in a row; threshold 1 keeps all."""

    name: ClassVar[str] = "similar-frames"
    title: ClassVar[str] = "StreamDiffusion's stochastic similarity filter"
    source: ClassVar[str] = "arXiv:2312.12491"
    differs: ClassVar[str] = "seeded by (seed, frame number); thumbnails, not all pixels; the cap on skips is exact"

    threshold: float = 0.98
    most: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self, threshold=(-1.0, 1.0), most=(0, 1 << 31), seed=(0, 1 << 62))

    @classmethod
    def noop(cls) -> Self:
        return cls(threshold=1.0)

    def start(self) -> _State:
        return _State()

    def step(self, state: _State, frame: Frame) -> tuple[_State, Verdict]:
        flat = thumbnail(frame.image).reshape(-1)
        small = flat / max(float(np.linalg.norm(flat)), 1e-12)
        likeness = 0.0 if state.kept is None else float(np.clip(small @ state.kept, -1.0, 1.0))
        if state.kept is not None and state.skipped < self.most and self._skips(likeness, state.seen):
            return _State(state.kept, state.skipped + 1, state.seen + 1), Verdict(None, 1 - likeness)
        return _State(small, 0, state.seen + 1), Verdict(frame, 1 - likeness)

    def _skips(self, likeness: float, seen: int) -> bool:
        if self.threshold >= 1:
            return False
        chance = max(0.0, 1 - (1 - likeness) / (1 - self.threshold))
        return chance > np.random.Generator(np.random.Philox(key=[self.seed, seen])).random()
