"""scene-change: frames that differ from the last one kept.
Differs from shot detectors: compares with the last frame that was kept, so that slow drift is seen too.
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
    kept: np.ndarray | None = None  # thumbnail of the last frame that was kept
    t: float = 0.0


@dataclass(frozen=True)
class SceneChange(FrameReducer):
    """`threshold`: mean colour difference of thumbnails, 0 to 1, from which a frame is kept; 0 keeps every frame.

    `longest`: seconds after which a frame is kept in any case.
    """

    name: ClassVar[str] = "scene-change"
    title: ClassVar[str] = "Frames that differ from the last one kept"
    source: ClassVar[str] = "common practice"
    differs: ClassVar[str] = "compares with the last kept frame, not with the last one"

    threshold: float = 0.03
    longest: float = 30.0

    def __post_init__(self) -> None:
        check_range(self, threshold=(0.0, 1.0), longest=(0.0, 1e9))

    @classmethod
    def noop(cls) -> Self:
        return cls(threshold=0.0)

    def start(self) -> _State:
        return _State()

    def step(self, state: _State, frame: Frame) -> tuple[_State, Verdict]:
        small = thumbnail(frame.image)
        score = 1.0 if state.kept is None else float(np.abs(small - state.kept).mean())
        if state.kept is None or score >= self.threshold or frame.t - state.t >= self.longest:
            return _State(small, frame.t), Verdict(frame, score)
        return state, Verdict(None, score)
