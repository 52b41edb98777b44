"""streaming-vlm: first text, a long window of text and a short one of vision, numbered together.  arXiv:2510.09608

Differs from the paper: the newest text and the previous turns share one window; entries leave where a unit ends, not
before a turn; positions have one axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from penstock.core import Kind
from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Sinks, Window
from penstock.memory.routing import ByKind, FrameWindow
from penstock.methods.base import LAWS, Method

_SINKS = 0.1  # of the budget at most, as in the paper's 512 of about 5,000


@dataclass(frozen=True)
class StreamingVLM(Method):
    """Text and vision in regions of their own, so that a flood of frames does not push out what was said.

    The first `sinks` tokens of text (at most a tenth of the budget) stay for ever.  `vision` is the share of the budget
    that holds the newest vision and sound, as whole frames of `frame` tokens; the newest text, written or read, has the
    rest.  `positions`: `contiguous` numbers all that is held anew (the paper's "shrink"), `stream` leaves it as it was
    ("append").  Memory changes every `unit` tokens.
    """

    name: ClassVar[str] = "streaming-vlm"
    title: ClassVar[str] = "Text sink, long text window, short vision window"
    source: ClassVar[str] = "arXiv:2510.09608"
    differs: ClassVar[str] = "previous and newest text share one window; entries leave where a unit ends; one axis"
    slots: ClassVar[tuple[str, ...]] = ("segments", "placement", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    sinks: int = 512
    vision: float = 0.65
    frame: int = 1
    positions: Literal["contiguous", "stream"] = "contiguous"
    unit: int = 8

    def lossless(self) -> StreamingVLM:
        """All of the budget for text."""
        return replace(self, vision=0.0)

    def sizes(self, budget: int | None) -> tuple[int, int, int]:
        """(text sinks, text window, frames) of a budget."""
        if budget is None:
            raise BudgetError("streaming-vlm needs a budget: give entries (4096) or bytes (64MiB).")
        if not 0 <= self.vision < 1 or self.frame < 1 or self.unit < 1 or self.sinks < 0:
            raise UsageError(
                "streaming-vlm needs vision from 0 to below 1, frame and unit of 1 or more, sinks of 0 or more."
            )
        room = budget - self.unit
        sinks, frames = min(self.sinks, int(_SINKS * max(0, room))), int(self.vision * room) // self.frame
        window = room - sinks - frames * self.frame
        if room < 1 or window < 1 or (self.vision and not frames):
            least = self.unit + max(-(-self.frame // self.vision) if self.vision else 0, 2)
            raise BudgetError(
                f"a budget of {budget} cannot hold a frame of {self.frame}, a unit of {self.unit} and text: "
                f"give at least {int(least) + 2}, or smaller frames (streaming-vlm:frame=N)."
            )
        return sinks, window, frames

    def cascade(self, budget: int | None) -> Cascade:
        sinks, window, frames = self.sizes(budget)
        text = ((int(Kind.TEXT), int(Kind.ANSWER)), (Sinks(sinks), Window(window)))
        seen = ((int(Kind.VISION), int(Kind.AUDIO)), (FrameWindow(frames, self.frame),))
        return Cascade((ByKind((text, seen)),), self.positions, self.unit)
