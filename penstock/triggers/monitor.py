"""Monitors: look at an answer token by token and may stop it.  The debounce that keeps one odd token from doing so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from penstock.errors import UsageError
from penstock.registry import Named
from penstock.registry import parse as parse_named


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
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"a monitor's scores never reach {self.threshold:g}: give a threshold from 0 to 1.")
        if not 1 <= self.need <= self.of:
            raise UsageError(f"{self.need} of the last {self.of} scores cannot be reached: give 1 <= need <= of.")

    def start(self) -> tuple[bool, ...]:
        return ()

    def step(self, state: tuple[bool, ...], score: float) -> tuple[tuple[bool, ...], bool]:
        """The next state, and whether to stop."""
        newest = (*state, score >= self.threshold)[-self.of :]
        return newest, sum(newest) >= self.need


@dataclass(frozen=True)
class Guarding(Debounce, Named):
    """The shipped monitor (`penstock.models.guard.Guard`), as it is written on the command line."""

    name: ClassVar[str] = "guard"
    title: ClassVar[str] = "The shipped monitor: ends what leaves the world of facts"
    source: ClassVar[str] = "arXiv:2506.09996"
    differs: ClassVar[str] = "two small heads on token embeddings, without a language model of their own"


def monitors() -> dict[str, type[Guarding]]:
    """All monitors: name -> class."""
    return {Guarding.name: Guarding}


def parse_monitor(text: str) -> Guarding:
    """Read `guard` or `guard:threshold=0.9,need=3,of=4`; raises UnknownName with suggestions."""
    return parse_named("monitor", text, monitors())


class Objections:
    """One answer under a monitor, from its beginning; without one nobody objects."""

    def __init__(self, monitor: Monitor | None, debounce: Debounce | None = None) -> None:
        self._monitor, self._debounce = monitor, debounce or Debounce()
        self._state = self._debounce.start()
        if monitor is not None:
            monitor.start()

    def to(self, text: str, token: int) -> bool:
        """Whether the answer must end here: `text` so far, `token` its newest."""
        score = None if self._monitor is None else self._monitor.score(text, token)
        if score is None:
            return False
        self._state, stops = self._debounce.step(self._state, score)
        return stops
