"""stc: keep the tokens of a frame that are least like its mean and like what came before.  arXiv:2512.00891 (pruner)
Differs from the paper: the history is a running mean with a count, per stream, so the state does not grow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from penstock.reducers.base import Moment, Reduced, TokenReducer, everything
from penstock.registry import check_range

_ALPHAS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)


@dataclass(frozen=True)
class _State:
    mean: Tensor | None = None  # [D] mean of the frames' means
    count: int = 0


@dataclass(frozen=True)
class Stc(TokenReducer):
    """`keep`: tokens per frame; 0 keeps all."""

    name: ClassVar[str] = "stc"
    title: ClassVar[str] = "STC's pruner: the most distinctive tokens of every frame"
    source: ClassVar[str] = "arXiv:2512.00891"
    differs: ClassVar[str] = "the history is a running mean, one per stream, instead of a list that grows"

    keep: int = 60

    def __post_init__(self) -> None:
        check_range(self, keep=(0, 1 << 31))

    @classmethod
    def noop(cls) -> Self:
        return cls(keep=0)

    def start(self) -> _State:
        return _State()

    def step(self, state: _State, visual: Moment) -> tuple[_State, Reduced]:
        tokens = visual.tokens.detach().float()
        mean = tokens.mean(0)
        count = state.count + 1
        history = mean if state.mean is None or state.mean.shape != mean.shape else (
            state.mean + (mean - state.mean) / count
        )  # fmt: skip
        moved = _State(history, count)
        if self.keep == 0 or self.keep >= len(tokens):
            return moved, Reduced(everything(visual))
        score = likeness(tokens, history)
        index = score.argsort(stable=True)[: self.keep].sort().values
        return moved, Reduced(index, None, self.keep / len(tokens))


def likeness(tokens: Tensor, history: Tensor) -> Tensor:
    """[P]: how much a token is like its frame's mean and like the history, over the channels that vary least."""
    channels = tokens.var(0, unbiased=False).argsort(stable=True)[: max(1, tokens.shape[1] // 2)]
    x = torch.nn.functional.normalize(tokens[:, channels], dim=-1)
    past = torch.nn.functional.normalize(history[channels], dim=-1)
    return _kernel(x, x.mean(0)) + _kernel(x, past)


def _kernel(x: Tensor, anchor: Tensor) -> Tensor:
    distance = (x - anchor).square().sum(-1)
    return sum((torch.exp(-distance / (2 * alpha)) for alpha in _ALPHAS), torch.zeros_like(distance))
