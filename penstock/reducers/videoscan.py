"""videoscan: put the mean of a frame's tokens behind them, or in their place.  arXiv:2503.09387
Differs from the paper: the part before the language model only; dropping the frame's keys is the memory of this name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch

from penstock.reducers.base import Moment, Reduced, TokenReducer, everything


@dataclass(frozen=True)
class VideoScan(TokenReducer):
    """`carrier` behind: the mean is added behind the frame's tokens; alone: it takes their place; none: no carrier."""

    name: ClassVar[str] = "videoscan"
    title: ClassVar[str] = "VideoScan's carrier: the mean of a frame's tokens, behind or instead of them"
    source: ClassVar[str] = "arXiv:2503.09387"
    differs: ClassVar[str] = "only what happens before the language model; combine with the memory videoscan"

    carrier: Literal["behind", "alone", "none"] = "behind"

    @classmethod
    def noop(cls) -> Self:
        return cls(carrier="none")

    def step(self, state: tuple[()], visual: Moment) -> tuple[tuple[()], Reduced]:
        if self.carrier == "none":
            return state, Reduced(everything(visual))
        mean = visual.tokens.float().mean(0, keepdim=True).to(visual.tokens.dtype)
        index = everything(visual) if self.carrier == "behind" else torch.zeros(0, dtype=torch.int64)
        return state, Reduced(index, mean)
