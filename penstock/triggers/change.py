"""change: speak where much of the picture is new.  arXiv:2504.17343 (TimeChat-Online)
Differs from the paper: a running quantile instead of one over the whole video, so it looks at the past only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from penstock.registry import check_range
from penstock.triggers.base import Sign, Signs, Trigger


@dataclass(frozen=True)
class _State:
    level: float = 0.5  # running estimate of the quantile
    seen: int = 0
    spoke: float = float("-inf")  # stream time


@dataclass(frozen=True)
class Change(Trigger):
    """Speaks at the `share` of frames with the most new tokens, at most once per `gap` seconds.

    `warm`: frames before the first decision; `step_size`: how fast the running quantile moves.
    """

    name: ClassVar[str] = "change"
    title: ClassVar[str] = "TimeChat-Online's trigger: moments of which many tokens are new"
    source: ClassVar[str] = "arXiv:2504.17343"
    differs: ClassVar[str] = "a running quantile; the paper's is taken over the whole video"
    needs: ClassVar[frozenset[Sign]] = frozenset({"change"})

    share: float = 0.1
    gap: float = 1.0
    warm: int = 10
    step_size: float = 0.05

    def __post_init__(self) -> None:
        check_range(self, share=(0.0, 1.0), gap=(0.0, 1e9), warm=(0, 1 << 31), step_size=(0.0, 1.0))

    def start(self) -> _State:
        return _State()

    def step(self, state: _State, signs: Signs) -> tuple[_State, bool]:
        change = self.sign(signs, "change")
        fires = state.seen >= self.warm and change > state.level and signs.t - state.spoke >= self.gap - 1e-6
        up = change > state.level
        level = state.level + self.step_size * ((1 - self.share) if up else -self.share)
        level = min(max(level, 0.0), 1.0)
        return _State(level, state.seen + 1, signs.t if fires else state.spoke), fires
