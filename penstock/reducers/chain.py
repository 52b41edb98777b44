"""Several reducers on one stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from penstock.core import Frame
from penstock.reducers.base import FrameReducer, Moment, Reduced, Reducer, TokenReducer, Verdict, everything


@dataclass(frozen=True)
class ChainState:
    """One state per reducer."""

    frames: tuple[Any, ...]
    tokens: tuple[Any, ...]


class Chain:
    """Frame reducers one behind the other; token reducers side by side on the whole frame.

    A token stays if every token reducer keeps it, so their order does not matter; carriers are put behind each other.
    """

    def __init__(self, reducers: Sequence[Reducer] = ()) -> None:
        self.reducers = tuple(reducers)
        self.frames = tuple(r for r in self.reducers if isinstance(r, FrameReducer))
        self.tokens = tuple(r for r in self.reducers if isinstance(r, TokenReducer))
        self.tower = tuple(r for r in self.reducers if r.stage == "tower")

    def __str__(self) -> str:
        return " + ".join(map(str, self.reducers)) or "none"

    def start(self) -> ChainState:
        return ChainState(tuple(r.start() for r in self.frames), tuple(r.start() for r in self.tokens))

    def frame(self, state: ChainState, frame: Frame) -> tuple[ChainState, Verdict]:
        """A frame, as the last frame reducer leaves it; those behind the one that leaves it out do not see it."""
        states, verdict = list(state.frames), Verdict(frame)
        for i, reducer in enumerate(self.frames):
            assert verdict.frame is not None
            states[i], verdict = reducer.step(states[i], verdict.frame)
            if verdict.frame is None:
                break
        return ChainState(tuple(states), state.tokens), verdict

    def visual(self, state: ChainState, visual: Moment) -> tuple[ChainState, Reduced]:
        """The tokens of a frame that all token reducers keep."""
        if not self.tokens:
            return state, Reduced(everything(visual))
        states, stays = list(state.tokens), torch.ones(visual.tokens.shape[0], dtype=torch.bool)
        carriers, change, skips = [], 1.0, False
        for i, reducer in enumerate(self.tokens):
            states[i], reduced = reducer.step(states[i], visual)
            kept = torch.zeros_like(stays)
            kept[reduced.index] = True
            stays &= kept
            change, skips = min(change, reduced.change), skips or reduced.skips
            if reduced.carriers is not None:
                carriers.append(reduced.carriers)
        extra = torch.cat(carriers) if carriers else None
        return ChainState(state.frames, tuple(states)), Reduced(
            stays.nonzero()[:, 0], extra, change, skips and extra is None
        )
