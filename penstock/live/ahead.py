"""Actions in chunks, inferred ahead: the next chunk is asked for while the current one is still carried out.

    chunk      a0 a1 a2 a3 a4 a5 | b0 b1 ...
    inference            [====]  |            begun `overlap` actions before the end, with the newest picture and the
                                              state *at the switch*: the present one rolled forward over a4 a5

VLASH (arXiv:2512.01031): a chunk inferred for the state at its beginning starts where the last one ends; one inferred
for the state at its observation jumps back.  Differs from the paper: the roll is a function that is passed in (theirs:
the last action is the state), and who carries inferences out is the caller's choice (a thread, a process).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from penstock.errors import UsageError

Observation = TypeVar("Observation")
Place = TypeVar("Place")
Action = TypeVar("Action")
Given = TypeVar("Given", covariant=True)


class Pending(Protocol[Given]):
    """An inference under way (concurrent.futures.Future is one)."""

    def done(self) -> bool: ...

    def result(self) -> Sequence[Given]: ...


@dataclass
class Ahead(Generic[Observation, Place, Action]):
    """One action per tick.

    `begin(observation, state)` starts an inference and returns it pending; `roll(state, actions)` is the state after
    carrying out these actions.  `overlap` 0 infers at the switch, as a synchronous policy does.
    """

    begin: Callable[[Observation, Place], Pending[Action]]
    roll: Callable[[Place, Sequence[Action]], Place]
    overlap: int = 4
    every: int = 1  # carry out every n-th action only, rolling all of them: faster motion
    stalls: int = 0  # ticks without an action, the first chunk's not counted
    _chunk: Sequence[Action] = ()
    _at: int = 0
    _pending: Pending[Action] | None = None
    _began: bool = field(default=False)

    def __post_init__(self) -> None:
        if self.overlap < 0 or self.every < 1:
            raise UsageError("an overlap is 0 actions or more, and every n-th action needs n of 1 or more.")

    def tick(self, observation: Observation, state: Place) -> Action | None:
        """The action of this tick; None while there is none to carry out.  `state` is the present one."""
        left = self._chunk[self._at :]
        if self._pending is None and len(left) <= self.overlap * self.every:
            self._pending = self.begin(observation, self.roll(state, left))
        if not len(left) and self._pending is not None and self._pending.done():
            self._chunk, self._at, self._pending = self._pending.result(), 0, None
            self._began = True
            left = self._chunk
            if self.overlap and len(left) <= self.overlap * self.every:
                raise UsageError(f"chunks of {len(left)} actions leave no room for an overlap of {self.overlap}.")
        if not len(left):
            self.stalls += self._began
            return None
        action = self._chunk[self._at]
        self._at += self.every
        return action
