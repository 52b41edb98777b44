"""video-streaming: clips are summed up one by one; a query reads the summaries that fit it.  arXiv:2405.16009

Differs from the paper: nothing is trained, so a summary is the means of groups of entries, the propagated memory is
their running mean, and an indicator is the mean direction of a clip's raw keys.  The archive forgets its oldest clip.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from penstock.errors import BudgetError, UsageError
from penstock.memory import (
    Additive,
    Cascade,
    Entries,
    Frame,
    Part,
    Place,
    Query,
    Readable,
    Sinks,
    State,
    Unit,
    Window,
)
from penstock.memory.pooling import directions, frame_size, pooled
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class Clips(Part):
    """Summaries of the newest `stored` clips, `chosen` of them read per query, and a running mean of all clips.

    A clip is `clip` entries, its summary the means of groups of `group`.  A query reads the clips whose indicators have
    the largest cosine similarity with it, on average over the heads here.  The running mean keeps `decay` of itself per
    clip; its entries are numbered by the newest they hold, and count as often as they stand for.
    """

    biased: ClassVar[bool] = True
    dynamic: ClassVar[bool] = True

    clip: int
    group: int
    stored: int
    chosen: int
    decay: float = 0.9

    @property
    def summary(self) -> int:
        """Entries of a summary."""
        return self.clip // self.group

    @property
    def entries(self) -> int:
        return (self.chosen + 1) * self.summary

    def nbytes(self, place: Place) -> int:
        indicator = 4 * place.heads * place.layer.key_width
        summary = self.summary * place.entry_bytes(biased=True)
        return (self.stored + 1) * summary + self.stored * indicator + 8

    def begin(self, place: Place) -> State:
        return {
            "clips": place.none(biased=True),
            "indicators": torch.zeros(0, place.heads, place.layer.key_width, device=place.device),
            "history": place.none(biased=True),
            "weight": torch.zeros(1, dtype=torch.float64),  # clips that the history stands for
        }

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """Whole clips arrive; the oldest leave the archive and stay in the history."""
        arriving = self.settle(arriving, place)
        clips, indicators, history = state["clips"], state["indicators"], state["history"]
        weight = float(state["weight"])
        for start in range(0, len(arriving), self.clip):
            one = arriving.cut(start, start + self.clip)
            summary = pooled(one, self.group)
            history, weight = self._propagated(history, summary, weight)
            clips = Entries.join([clips, summary]).cut(max(0, len(clips) - (self.stored - 1) * self.summary))
            newest = directions(directions(one.key).mean(1))[None]  # [1, H, D]
            indicators = torch.cat([indicators, newest])[-self.stored :].clone()
        after = {"clips": clips, "indicators": indicators, "history": history}
        return {**after, "weight": torch.tensor([weight], dtype=torch.float64)}, None

    def _propagated(self, history: Entries, summary: Entries, weight: float) -> tuple[Entries, float]:
        if not len(history):
            return summary, 1.0
        after = self.decay * weight + 1.0
        share = 1.0 / after  # of the newest: a mean in which a clip weighs decay ** age

        def mean(old: Tensor, new: Tensor) -> Tensor:
            return torch.lerp(old.float(), new.float(), share).to(old.dtype)

        assert summary.bias is not None
        key, value = mean(history.key, summary.key), mean(history.value, summary.value)
        return replace(summary, key=key, value=value, bias=summary.bias + math.log(after)), after

    def read(self, state: State, query: Query, frame: Frame, place: Place) -> Iterator[Readable | Additive]:
        """The history, and of the archive what each query chooses."""
        history, clips = state["history"], state["clips"]
        if not len(history):
            return
        yield _far(history, frame)
        mask = None
        if len(state["indicators"]) > self.chosen:
            mask = self.choice(state["indicators"], query).repeat_interleave(self.summary, 1)
        yield _far(clips, frame, mask)

    def choice(self, indicators: Tensor, query: Query) -> Tensor:
        """[C, clips] bool: which clips each query reads; of equal ones the newer."""
        asked = query.by_head(directions(query.raw)).mean(1)  # [H, C, D]
        alike = torch.einsum("hcd,nhd->cn", asked, indicators)
        order = alike.flip(1).argsort(dim=1, descending=True, stable=True)[:, : self.chosen]
        chosen = torch.zeros(alike.shape, dtype=torch.bool, device=alike.device)
        return chosen.scatter_(1, alike.shape[1] - 1 - order, True).cpu()

    def remembered(self, state: State) -> Tensor:
        return torch.cat([state["history"].seen[0], state["clips"].seen[0]]).unique()


def _far(entries: Entries, frame: Frame, mask: Tensor | None = None) -> Readable:
    # All far entries stand at position 0: raw keys are rotated already.
    return replace(Readable.of(entries, frame, mask=mask), turned=frame.policy == "far")


@dataclass(frozen=True)
class VideoStreaming(Method):
    """Sinks, a window, and behind it an archive of clip summaries with a running mean of them all.

    `clip` tokens of the stream, of whatever kind, make a clip (0: by the budget), summed up in a `group`-th of the
    entries.  A query reads the `chosen` summaries that fit it of `stored`, which are bytes beside the budget.  With 0
    chosen there are only sinks and window.  `decay` is what the running mean keeps of itself per clip.  Summaries are
    read at a limited distance (`clamped`).
    """

    name: ClassVar[str] = "video-streaming"
    title: ClassVar[str] = "Clip summaries, retrieved by indicators"
    source: ClassVar[str] = "arXiv:2405.16009"
    differs: ClassVar[str] = "untrained: summaries and indicators are means; a bounded archive; per query, not question"
    slots: ClassVar[tuple[str, ...]] = ("segments", "merging", "retrieval")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    clip: int = 0
    group: int = 4
    chosen: int = 4
    stored: int = 64
    decay: float = 0.9

    def lossless(self) -> VideoStreaming:
        """The window takes all."""
        return dataclasses.replace(self, chosen=0)

    def cascade(self, budget: int | None) -> Cascade:
        clip = frame_size(self.name, budget, self.clip, 8, 3)
        assert budget is not None
        if self.group < 1 or clip % self.group or self.chosen < 0 or self.stored < max(1, self.chosen):
            raise UsageError(
                f"video-streaming cannot choose {self.chosen} of {self.stored} clips of {clip} entries in groups of "
                f"{self.group}: make clip a multiple of group, and stored at least chosen."
            )
        if not 0.0 <= self.decay < 1.0:
            raise UsageError(f"decay cannot be {self.decay}: give a share from 0 to below 1.")
        sinks = Sinks(clip)
        if not self.chosen:
            return Cascade((sinks, Window(budget - 2 * clip)), "clamped", clip)
        clips = Clips(clip, self.group, self.stored, self.chosen, self.decay)
        window = (budget - 2 * clip - clips.entries) // clip * clip
        if window < clip:
            raise BudgetError(
                f"a budget of {budget} has no room for a clip of {clip} beside {clips.entries} entries of summaries: "
                f"give at least {3 * clip + clips.entries}, or smaller clips (video-streaming:clip=4)."
            )
        return Cascade((sinks, Window(window), clips), "clamped", clip)
