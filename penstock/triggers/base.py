"""What a trigger is: a rule that says, after every frame, whether now is a moment to speak.

Triggers are values; `step(state, signs)` returns the next state and the decision.  They look at `Signs` only, and say
in `needs` which of them must be there, so that nothing is computed that nobody asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from penstock.errors import InputError
from penstock.registry import Named

Sign = Literal["change", "silence", "perplexity", "evidence"]


@dataclass(frozen=True)
class Signs:
    """What is known after a frame; None where it was not measured."""

    t: float  # seconds of stream time
    change: float | None = None  # share of the frame's tokens that were new, 0 to 1
    silence: float | None = None  # probability of the token that means silence
    prefers_silence: bool = True  # whether that token is the likeliest
    perplexity: float | None = None  # of the last answer, read again behind this frame
    spoke: bool = False  # an answer was given behind the frame before; its perplexity then was `answered`
    answered: float | None = None
    evidence: float | None = None  # of a request: how sure the model is that it has seen what is asked for, 0 to 1


@dataclass(frozen=True)
class Draft:
    """What would be said now, which nobody has heard yet."""

    least: float  # probability of its least likely word, 0 to 1
    since: float = float("inf")  # seconds since the same was last said; infinity: never


class Trigger(Named, ABC):
    """Base of all triggers."""

    needs: ClassVar[frozenset[Sign]] = frozenset()
    each: ClassVar[bool] = False  # every request has a state of its own

    def start(self) -> Any:
        """The state at the beginning of a stream."""
        return ()

    def looks(self, state: Any, t: float) -> bool:
        """Whether signs of second t are worth measuring; if not, `step` does not speak."""
        return True

    @abstractmethod
    def step(self, state: Any, signs: Signs) -> tuple[Any, bool]:
        """The next state, and whether to speak."""

    @property
    def weighs(self) -> bool:
        """Whether it wants to see what would be said."""
        return False

    def keeps(self, draft: Draft) -> bool:
        """Whether this is said; if not, it leaves the stream as if it had never been thought of."""
        return True

    def sign(self, signs: Signs, name: Sign) -> float:
        """A sign that this trigger needs."""
        value: float | None = getattr(signs, name)
        if value is None:
            raise InputError(f"the trigger {self.name} needs {name}, which was not measured: choose every or change.")
        return value
