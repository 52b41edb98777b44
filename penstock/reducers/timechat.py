"""timechat: drop visual tokens that look as in the frame before (differential token drop).  arXiv:2504.17343
Differs from the paper: can compare with the last KEPT token of a place, so that slow drift is not lost; can leave out
whole frames, for models that know frames by their number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from penstock.errors import InputError, UsageError
from penstock.reducers.base import Moment, Reduced, TokenReducer, cells, everything
from penstock.registry import check_range


@dataclass(frozen=True)
class _State:
    past: Tensor | np.ndarray | None = None  # [P, D] features or [rows, columns, 3] colours to compare with
    grid: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class TimeChat(TokenReducer):
    """`by` feature: drop above a cosine of `threshold`; pixel: below a colour difference of `threshold` (0 to 1);
    relative: drop the `threshold` share that changed least.

    `unit`: token leaves out tokens; frame leaves out frames, and keeps all of one of which a token would stay.
    `against`: the frame before (previous) or the token last kept at the place (kept).  Nothing is dropped at
    threshold 1 by feature, 0 by pixel or relative.
    """

    name: ClassVar[str] = "timechat"
    title: ClassVar[str] = "TimeChat-Online's differential token drop"
    source: ClassVar[str] = "arXiv:2504.17343"
    differs: ClassVar[str] = (
        "pixel mode compares mean colours of cells; against=kept sees slow drift; unit=frame keeps frames whole"
    )

    threshold: float = 0.5
    by: Literal["feature", "pixel", "relative"] = "feature"
    against: Literal["previous", "kept"] = "previous"
    unit: Literal["token", "frame"] = "token"

    def __post_init__(self) -> None:
        check_range(self, threshold=(-1.0, 1.0))
        if self.by == "relative" and self.against == "kept":
            raise UsageError(
                "a share of the tokens is dropped by comparing with the previous frame: leave against out."
            )

        if self.by == "relative" and self.unit == "frame":
            raise UsageError("a share of the tokens of every frame stays: leave unit out, or choose by=feature.")

    @classmethod
    def noop(cls) -> Self:
        return cls(threshold=1.0)

    def start(self) -> _State:
        return _State()

    def step(self, state: _State, visual: Moment) -> tuple[_State, Reduced]:
        now = self._seen(visual)
        if state.past is None or state.grid != visual.grid:  # the first frame, or one of another size
            return _State(now, visual.grid), Reduced(everything(visual))
        stays = self._changed(state.past, now)
        change = float(stays.float().mean())
        if self.unit == "frame":
            stays = stays.any().expand(len(stays))
        past: Tensor | np.ndarray = now
        if self.against == "kept":
            flat = stays.reshape(-1, 1)
            if isinstance(now, Tensor) and isinstance(state.past, Tensor):
                past = torch.where(flat, now, state.past)
            else:
                past = np.where(flat.reshape(*visual.grid, 1).numpy(), np.asarray(now), np.asarray(state.past))
        return _State(past, visual.grid), Reduced(
            stays.nonzero()[:, 0], None, change, self.unit == "frame" and not stays.any()
        )

    def _seen(self, visual: Moment) -> Tensor | np.ndarray:
        if self.by != "pixel":
            return visual.tokens.detach()
        if visual.image is None:
            raise InputError("timechat:by=pixel needs the picture beside its tokens: use by=feature.")
        return cells(visual.image, visual.grid)

    def _changed(self, past: Tensor | np.ndarray, now: Tensor | np.ndarray) -> Tensor:
        """bool [P]"""
        if isinstance(now, np.ndarray):
            difference = torch.from_numpy(np.abs(now - past).mean(-1)).reshape(-1)
            return difference >= self.threshold
        assert isinstance(past, Tensor)
        likeness = torch.cosine_similarity(now.float(), past.float(), dim=-1).clamp(-1.0, 1.0)
        if self.by == "feature":
            return likeness <= self.threshold
        count = int(len(likeness) * max(0.0, self.threshold))
        stays = torch.ones(len(likeness), dtype=torch.bool)
        stays[likeness.argsort(descending=True, stable=True)[:count]] = False
        return stays
