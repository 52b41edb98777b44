"""silence: speak where the model does not want to be silent.  arXiv:2406.11816 (VideoLLM-online)
Differs from the paper: the silence token is the model's own; the decision is apart from the decoding of the answer;
what would be said can be weighed before it is said (`sure`, `again`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from penstock.registry import check_range
from penstock.triggers.base import Draft, Sign, Signs, Trigger


@dataclass(frozen=True)
class Silence(Trigger):
    """Silence needs a probability of at least `threshold` and to be the likeliest token.

    Threshold 0 is the plain likeliest token; above 1 the model speaks at every frame.  Nothing is said of which a word
    has a probability below `sure`, nor what was said within the last `again` seconds.
    """

    name: ClassVar[str] = "silence"
    title: ClassVar[str] = "VideoLLM-online's threshold on the silence token"
    source: ClassVar[str] = "arXiv:2406.11816"
    differs: ClassVar[str] = (
        "the decision is apart from the decoding of the answer, which can be weighed before it is said"
    )
    needs: ClassVar[frozenset[Sign]] = frozenset({"silence"})

    threshold: float = 0.725
    sure: float = 0.0
    again: float = 0.0

    def __post_init__(self) -> None:
        check_range(self, threshold=(0.0, 2.0), sure=(0.0, 1.0), again=(0.0, 1e9))

    @property
    def weighs(self) -> bool:
        return self.sure > 0 or self.again > 0

    def keeps(self, draft: Draft) -> bool:
        repeats = self.again > 0 and draft.since <= self.again + 1e-6
        return draft.least >= self.sure and not repeats

    def step(self, state: tuple[()], signs: Signs) -> tuple[tuple[()], bool]:
        p = self.sign(signs, "silence")
        return state, p < self.threshold or not signs.prefers_silence
