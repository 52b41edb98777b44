"""videoscan: of every frame one token stays, the carrier, which read the others.  arXiv:2503.09387

Differs from the paper: similar carriers are found by a layer's raw keys, not by embeddings; a frame leaves where a unit
ends; text has sinks and a window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from penstock.core import Kind
from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Entries, Part, Place, Sinks, State, Unit, Window
from penstock.memory.routing import ByKind, FrameWindow, Route
from penstock.methods.base import LAWS, Method

_SINKS = 4


@dataclass(frozen=True)
class Carriers(Part):
    """The last entry of each frame, at most `bank` of them, and the frame that is not complete yet.

    When there are too many, the older one of the two neighbours in time that are most alike leaves: by the cosine of
    their raw keys, over all heads here.
    """

    frame: int
    bank: int

    @property
    def entries(self) -> int:
        return self.bank + self.frame - 1

    def nbytes(self, place: Place) -> int:
        return self.entries * place.entry_bytes() + 8

    def begin(self, place: Place) -> State:
        return {"held": place.none(), "open": torch.zeros(1, dtype=torch.int64)}

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """Complete frames leave their carrier; all else of them is gone."""
        both = Entries.join([state["held"], self.settle(arriving, place)])
        carriers = len(state["held"]) - int(state["open"])
        complete = (len(both) - carriers) // self.frame
        if not complete:
            return {"held": both, "open": torch.tensor([len(both) - carriers])}, None
        kept = list(range(carriers))
        for i in range(complete):
            kept.append(carriers + (i + 1) * self.frame - 1)
            if len(kept) > self.bank:
                del kept[alike(both.key[:, kept])]
        after = range(carriers + complete * self.frame, len(both))
        held = both.take(torch.tensor([*kept, *after], dtype=torch.int64))
        return {"held": held, "open": torch.tensor([len(after)])}, None


def alike(key: Tensor) -> int:
    """The older one of the most similar neighbours among keys [H, n, D]; the first pair of equal ones."""
    flat = key.transpose(0, 1).flatten(1).float()  # [n, H * D]
    return int(torch.nn.functional.cosine_similarity(flat[:-1], flat[1:], dim=1).argmax()) if len(flat) > 1 else 0


@dataclass(frozen=True)
class VideoScan(Method):
    """A cheap long memory for video: one entry per frame, for models trained with carriers.

    Vision tokens come in frames of `frame`, the last of which is the carrier (its embedding: the mean of the others).
    The newest `recent` frames stay whole; of older ones at most `bank` carriers stay, as many as the share `vision` of
    the budget holds.  Text has the rest.  `positions`: `contiguous` numbers all that is held anew, `stream` leaves it
    as it was.  Memory changes every `unit` tokens; where frames begin with units, each frame sees carriers only.
    """

    name: ClassVar[str] = "videoscan"
    title: ClassVar[str] = "One carrier token per frame"
    source: ClassVar[str] = "arXiv:2503.09387"
    differs: ClassVar[str] = "likeness by a layer's raw keys, not embeddings; frames leave where a unit ends"
    slots: ClassVar[tuple[str, ...]] = ("segments", "placement", "retention")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    frame: int = 16
    bank: int = 64
    recent: int = 0
    vision: float = 0.6
    positions: Literal["contiguous", "stream"] = "contiguous"
    unit: int = 16

    def lossless(self) -> VideoScan:
        """All of the budget for text."""
        return replace(self, vision=0.0)

    def sizes(self, budget: int | None) -> tuple[int, int]:
        """(text window, carriers) of a budget."""
        if budget is None:
            raise BudgetError("videoscan needs a budget: give entries (4096) or bytes (64MiB).")
        if not 0 <= self.vision < 1 or self.frame < 1 or self.unit < 1 or self.recent < 0:
            raise UsageError(
                "videoscan needs vision from 0 to below 1, frame and unit of 1 or more, recent of 0 or more."
            )
        room = max(0, budget - self.unit)
        fixed = (self.recent + 1) * self.frame - 1  # whole frames, and the one that is not complete
        bank = min(self.bank, int(self.vision * room) - fixed) if self.vision else 0
        window = room - _SINKS - (bank + fixed if self.vision else 0)
        if window < 1 or (self.vision and bank < 1):
            least = self.unit + max((fixed + 1) / (self.vision or 1), (fixed + 2 + _SINKS))
            raise BudgetError(
                f"a budget of {budget} cannot hold {self.recent + 1} frames of {self.frame}, a carrier and text: "
                f"give at least {int(least) + 1}, or smaller frames (videoscan:frame=N)."
            )
        return window, bank

    def cascade(self, budget: int | None) -> Cascade:
        window, bank = self.sizes(budget)
        text: Route = ((int(Kind.TEXT), int(Kind.ANSWER), int(Kind.AUDIO)), (Sinks(_SINKS), Window(window)))
        if not bank:
            return Cascade((ByKind((text,)),), self.positions, self.unit)
        whole = (FrameWindow(self.recent, self.frame),) if self.recent else ()
        seen: Route = ((int(Kind.VISION),), (*whole, Carriers(self.frame, bank)))
        return Cascade((ByKind((text, seen)),), self.positions, self.unit)
