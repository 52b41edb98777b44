"""clips: perception cuts the stream into clips, a decision is taken at the end of each.  arXiv:2501.03218 (Dispider)
Differs from the paper: the decision is the model's own odds against silence instead of a trained head; the reaction,
from a snapshot of what had been seen, is `penstock watch --apart`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from penstock.registry import check_range
from penstock.triggers.base import Sign, Signs, Trigger


@dataclass(frozen=True)
class Clips(Trigger):
    """A clip ends before a frame of which `scene` of the tokens are new, or with `longest` frames; then the model
    speaks if the logarithm of the odds against silence exceeds `bar`.  Its state is the number of frames in the clip.

    What a scene's last frame says is not known before the next one has begun: the decision falls behind that one.
    """

    name: ClassVar[str] = "clips"
    title: ClassVar[str] = "Dispider's decision at the end of each clip, apart from perception and reaction"
    source: ClassVar[str] = "arXiv:2501.03218"
    differs: ClassVar[str] = "the decision is the odds against silence, not a trained head"
    needs: ClassVar[frozenset[Sign]] = frozenset({"change", "silence"})

    scene: float = 0.6
    longest: int = 16
    bar: float = 0.0

    def __post_init__(self) -> None:
        check_range(self, scene=(0.0, 2.0), longest=(1, 1 << 31), bar=(-1e3, 1e3))

    def start(self) -> int:
        return 0

    def step(self, state: int, signs: Signs) -> tuple[int, bool]:
        count = state + 1
        if count < self.longest and self.sign(signs, "change") < self.scene:
            return count, False
        p = min(max(self.sign(signs, "silence"), 1e-12), 1 - 1e-12)
        return 0, math.log((1 - p) / p) > self.bar
