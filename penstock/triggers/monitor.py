"""Monitors: look at an answer token by token and may stop it.  The debounce that keeps one odd token from doing so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from penstock.errors import UsageError


class Monitor(Protocol):
    """Scores an answer while it is written; `penstock.models.guard.Guard` is a trained one."""

    def start(self) -> None:
        """A new answer begins."""

    def score(self, text: str, token: int) -> float | None:
        """How objectionable the newest part of an answer is, 0 to 1: `text` so far, `token` its newest.

        None if nothing is new to it (half a word): the debounce then stays as it is.
        """


@dataclass(frozen=True)
class Debounce:
    """Stops an answer when `need` of the last `of` scores reach `threshold`.  Its state are those decisions."""

    threshold: float = 0.5
    need: int = 2
    of: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.need <= self.of:
            raise UsageError(f"{self.need} of the last {self.of} scores cannot be reached: give 1 <= need <= of.")

    def start(self) -> tuple[bool, ...]:
        return ()

    def step(self, state: tuple[bool, ...], score: float) -> tuple[tuple[bool, ...], bool]:
        """The next state, and whether to stop."""
        newest = (*state, score >= self.threshold)[-self.of :]
        return newest, sum(newest) >= self.need
