"""every: speak every so many seconds of the stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from penstock.registry import check_range
from penstock.triggers.base import Signs, Trigger


@dataclass(frozen=True)
class Every(Trigger):
    """`seconds` between two moments; the first is `seconds` after the beginning."""

    name: ClassVar[str] = "every"
    title: ClassVar[str] = "Every so many seconds"
    source: ClassVar[str] = "common practice"
    differs: ClassVar[str] = "a grid in stream time"

    seconds: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, seconds=(1e-3, 1e9))

    def start(self) -> float | None:
        return None  # stream time of the last moment

    def step(self, state: float | None, signs: Signs) -> tuple[float | None, bool]:
        if state is None:
            return signs.t, False
        due = signs.t - state >= self.seconds - 1e-6
        return (signs.t if due else state), due
