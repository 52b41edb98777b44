"""fixed-rate: the first frame of every 1/rate seconds.
Differs from the papers that sample uniformly: the grid is fixed in stream time, the length of the stream is not needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

from penstock.core import Frame
from penstock.reducers.base import FrameReducer, Verdict
from penstock.registry import check_range


@dataclass(frozen=True)
class FixedRate(FrameReducer):
    """`rate`: frames per second; 0 keeps every frame."""

    name: ClassVar[str] = "fixed-rate"
    title: ClassVar[str] = "The first frame of every 1/rate seconds"
    source: ClassVar[str] = "common practice"
    differs: ClassVar[str] = "a grid in stream time, so the length of the stream need not be known"

    rate: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, rate=(0.0, 1e6))

    @classmethod
    def noop(cls) -> Self:
        return cls(rate=0.0)

    def start(self) -> int:
        return -1  # the newest cell of the grid that has a frame

    def step(self, state: int, frame: Frame) -> tuple[int, Verdict]:
        if self.rate == 0:
            return state, Verdict(frame)
        cell = math.floor(frame.t * self.rate + 1e-6)
        return max(state, cell), Verdict(frame if cell > state else None, float(cell > state))
