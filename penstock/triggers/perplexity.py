"""perplexity: speak where the last answer no longer fits what is seen.  arXiv: LiveStar (response-silence decoding)
Differs from the paper: the bar is set anew after every answer, by the answer as it was given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from penstock.registry import check_range
from penstock.triggers.base import Sign, Signs, Trigger


@dataclass(frozen=True)
class Perplexity(Trigger):
    """Speaks when the last answer's perplexity behind the newest frame exceeds `alpha` times that when it was given.

    Without an answer yet it speaks.  Alpha 0 speaks at every frame, infinity once.
    """

    name: ClassVar[str] = "perplexity"
    title: ClassVar[str] = "LiveStar's perplexity ratio of the last answer"
    source: ClassVar[str] = "LiveStar"
    differs: ClassVar[str] = "the bar is the perplexity of the answer as given, set anew after each answer"
    needs: ClassVar[frozenset[Sign]] = frozenset({"perplexity"})

    alpha: float = 1.03

    def __post_init__(self) -> None:
        check_range(self, alpha=(0.0, math.inf))

    def start(self) -> float | None:
        return None  # tau: the perplexity of the last answer when it was given

    def step(self, state: float | None, signs: Signs) -> tuple[float | None, bool]:
        if signs.spoke and signs.answered is not None:
            state = signs.answered
        if state is None:
            return state, True
        return state, self.sign(signs, "perplexity") > self.alpha * state
