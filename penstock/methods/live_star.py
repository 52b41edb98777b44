"""live-star: of the frames behind each answer the half that fits it best stays (peak-end memory).

LiveStar, github.com/yzy-bupt/LiveStar
Differs from the paper: how well a frame fits is the score of the answer's queries on its keys, layer by layer, not the
perplexity of the answer; the trigger that decides when to speak is not part of the memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from penstock.core import Kind
from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Entries, Part, Place, Sinks, State, Unit, Window
from penstock.memory.routing import ByKind
from penstock.methods.base import LAWS, Method

_SINKS = 4


@dataclass(frozen=True)
class PeakEnd(Part):
    """At most `frames` whole frames of `frame` vision entries, and the one that is not complete; other kinds pass.

    A run of answer tokens begins a group; the frames behind it belong to it.  When there are too many frames, each
    closed group keeps the better half (rounded up) by how well its frames fit the group's answer; then the open group;
    then the oldest frames leave.  Before the first answer all fit alike, and the newer half stays.
    """

    needs_queries: ClassVar[bool] = True

    frame: int
    frames: int

    @property
    def entries(self) -> int:
        return (self.frames + 1) * self.frame - 1

    def nbytes(self, place: Place) -> int:
        return (
            self.entries * place.entry_bytes() + self.frames * 12 + place.heads * place.group * _width(place) * 4 + 24
        )

    def begin(self, place: Place) -> State:
        return {
            "held": place.none(),  # complete frames, then the open one
            "group": torch.zeros(0, dtype=torch.int64),  # [frames]
            "fit": torch.zeros(0),  # [frames]
            "asked": torch.zeros(place.heads * place.group, _width(place)),  # [Hq, D] sum of the answer's raw queries
            "now": torch.zeros(3, dtype=torch.int64),  # group, tokens of its answer, whether it is being given
        }

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """Token by token: answers are listened to, frames are completed, judged and dropped."""
        assert unit.query is not None
        kinds = arriving.kind[0].tolist()
        vision = arriving.kind == int(Kind.VISION)
        both = Entries.join([state["held"], self.settle(arriving.where(vision), place)])
        group, fit, asked = state["group"].tolist(), state["fit"].tolist(), state["asked"]
        now, count, giving = state["now"].tolist()
        kept = list(range(len(group)))  # frames of `both`, by number
        come = len(state["held"])  # its entries so far
        for kind, at in zip(kinds, (arriving.seen[0] - unit.start).tolist()):
            if kind == Kind.ANSWER:
                if not giving:
                    now, count, asked = now + 1, 0, torch.zeros_like(asked)
                asked, count = asked + unit.query[:, at].float().cpu(), count + 1
            giving = int(kind == Kind.ANSWER)
            if kind != Kind.VISION:
                continue
            come += 1
            if come % self.frame == 0:
                last = come // self.frame - 1
                keys = both.key[:, last * self.frame : come].float().cpu()
                kept.append(last)
                group.append(now)
                fit.append(fitting(asked / max(1, count), keys))
                if len(kept) > self.frames:
                    stay = chosen(group, fit, now, self.frames)
                    kept, group, fit = ([x[i] for i in stay] for x in (kept, group, fit))
        index = [f * self.frame + i for f in kept for i in range(self.frame)]
        index += range(come // self.frame * self.frame, come)
        held = both.take(torch.tensor(index, dtype=torch.int64))
        new = {
            "held": held,
            "group": torch.tensor(group, dtype=torch.int64),
            "fit": torch.tensor(fit, dtype=torch.float32),
            "asked": asked,
            "now": torch.tensor([now, count, giving]),
        }
        return new, arriving.where(~vision)


def fitting(asked: Tensor, key: Tensor) -> float:
    """How well a frame fits an answer: the mean score of its mean query [Hq, D] on the frame's keys [H, F, D], raw."""
    by_head = asked.reshape(key.shape[0], -1, asked.shape[-1])  # [H, group, D]
    return float((by_head @ key.transpose(1, 2)).mean())


def chosen(group: list[int], fit: list[float], now: int, frames: int) -> list[int]:
    """Which frames stay, by number, when there are more than `frames`; `now` is the open group."""
    stay = list(range(len(group)))
    for halved in ([g for g in dict.fromkeys(group) if g != now], [now]):
        if len(stay) > frames:
            for g in halved:
                mine = [i for i in stay if group[i] == g]
                best = sorted(mine, key=lambda i: (-fit[i], -i))[: -(-len(mine) // 2)]
                stay = [i for i in stay if group[i] != g or i in best]
    return stay[max(0, len(stay) - frames) :]


def _width(place: Place) -> int:
    return place.layer.key_width


@dataclass(frozen=True)
class LiveStar(Method):
    """For models that comment on a video as it runs: frames behind an answer are thinned out to those it speaks of.

    Vision tokens come in frames of `frame`; at most `frames` of them stay, or as many as the share `vision` of the
    budget holds.  Answers have the kind ANSWER.  Text has first tokens and a window.  `positions`: `contiguous` numbers
    all that is held anew, `stream` leaves it as it was.  Memory changes every `unit` tokens.
    """

    name: ClassVar[str] = "live-star"
    title: ClassVar[str] = "Peak-end memory of frames behind each answer"
    source: ClassVar[str] = "github.com/yzy-bupt/LiveStar"
    differs: ClassVar[str] = (
        "a frame fits by the scores of the answer's queries on its keys, not by perplexity; no trigger"
    )
    slots: ClassVar[tuple[str, ...]] = ("segments", "placement", "retention")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    frame: int = 8
    frames: int = 24
    vision: float = 0.6
    positions: Literal["contiguous", "stream"] = "contiguous"
    unit: int = 8

    def lossless(self) -> LiveStar:
        """All of the budget for text."""
        return replace(self, vision=0.0)

    def sizes(self, budget: int | None) -> tuple[int, int]:
        """(text window, frames) of a budget."""
        if budget is None:
            raise BudgetError("live-star needs a budget: give entries (4096) or bytes (64MiB).")
        if not 0 <= self.vision < 1 or self.frame < 1 or self.unit < 1 or self.frames < 1:
            raise UsageError("live-star needs vision from 0 to below 1, and a frame, frames and unit of 1 or more.")
        room = max(0, budget - self.unit)
        frames = min(self.frames, (int(self.vision * room) + 1) // self.frame - 1) if self.vision else 0
        window = room - _SINKS - ((frames + 1) * self.frame - 1 if self.vision else 0)
        if window < 1 or (self.vision and frames < 1):
            least = self.unit + max(2 * self.frame / (self.vision or 1), 2 * self.frame + _SINKS + 1)
            raise BudgetError(
                f"a budget of {budget} cannot hold two frames of {self.frame} and text: "
                f"give at least {int(least) + 1}, or smaller frames (live-star:frame=N)."
            )
        return window, frames

    def cascade(self, budget: int | None) -> Cascade:
        window, frames = self.sizes(budget)
        text = ((int(Kind.TEXT), int(Kind.ANSWER), int(Kind.AUDIO)), (Sinks(_SINKS), Window(window)))
        peaks = (PeakEnd(self.frame, frames),) if frames else ()
        return Cascade((*peaks, ByKind((text,))), self.positions, self.unit)
