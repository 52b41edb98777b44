"""reward-forcing: entries that leave the window fold into the sinks by a moving average.  arXiv:2512.04678

Differs from the paper: entry n that leaves folds into sink n modulo the number of sinks, so that sinks need not be as
many as a block; the average is kept in float32.  The reward-weighted training is not part of a memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from penstock.errors import UsageError
from penstock.memory import Cascade, Entries, Place, State, Unit, Window
from penstock.memory.summaries import Summary, room
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class MovingSinks(Summary):
    """The first `size` entries that reach it, each of them a moving average of all that followed.

    Arrival n falls on entry n modulo `size`, which becomes `decay` times what it was plus the rest of the newcomer.  An
    entry keeps its place in the stream.
    """

    role: ClassVar[str] = "sinks"

    size: int
    decay: float = 0.999

    @property
    def entries(self) -> int:
        return self.size

    def nbytes(self, place: Place) -> int:
        return (super().nbytes(place) or 0) + 8

    def begin(self, place: Place) -> State:
        return {**super().begin(place), "arrived": torch.zeros(1, dtype=torch.int64)}

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """Fill up, then fold, round after round."""
        held: Entries = state["held"]
        rest, arrived = self.settle(arriving, place), int(state["arrived"])
        while len(rest):
            at = arrived % self.size
            some, rest = rest.split(min(self.size - at, len(rest)))
            held = Entries.join([held, some]) if arrived < self.size else self._fold(held, some, at)
            arrived += len(some)
        return {"held": held, "arrived": torch.tensor([arrived])}, None

    def _fold(self, held: Entries, some: Entries, at: int) -> Entries:
        key, value, end = held.key.clone(), held.value.clone(), at + len(some)
        key[:, at:end] = self.decay * key[:, at:end] + (1 - self.decay) * some.key
        value[:, at:end] = self.decay * value[:, at:end] + (1 - self.decay) * some.value
        return replace(held, key=key, value=value)

    def shift(self, state: State, by: int, place: Place) -> State:
        """Sinks stay where they are."""
        return state


@dataclass(frozen=True)
class RewardForcing(Method):
    """Sinks that drift slowly towards what has left the window.

    `sinks` entries (0: a third of the budget, as in the paper) start as the first of the stream; `decay` is how much of
    itself a sink keeps when an entry folds into it (1: plain sinks).  Made for frames that arrive in blocks: then let
    `unit` be the tokens of a block.  Positions are ranks in the memory (`contiguous`), or the stream's with the sinks
    at a limited distance (`clamped`).
    """

    name: ClassVar[str] = "reward-forcing"
    title: ClassVar[str] = "Evicted entries fold into the sinks"
    source: ClassVar[str] = "arXiv:2512.04678"
    differs: ClassVar[str] = "arrival n folds into sink n modulo their number, in float32; no reward-weighted training"
    slots: ClassVar[tuple[str, ...]] = ("segments", "summaries", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    sinks: int = 0
    decay: float = 0.999
    unit: int = 16
    positions: Literal["contiguous", "clamped"] = "contiguous"

    def cascade(self, budget: int | None) -> Cascade:
        if not 0.0 <= self.decay <= 1.0:
            raise UsageError(f"decay cannot be {self.decay}: give a share from 0 to 1.")
        sinks = self.sinks or max(1, (budget or 0) // 3)
        window = room(self.name, budget, self.unit, sinks, 1)
        return Cascade((Window(window), MovingSinks(sinks, self.decay)), self.positions, self.unit)
