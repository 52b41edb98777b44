"""What a reducer is: a rule that says which input is worth encoding, or which visual tokens are worth reading.

    frame ──► frame reducers ──► vision tower ──► token reducers ──► language model
                                 tower reducers

Reducers are values without memory of their own: `step(state, input)` returns the next state and a choice, and never
changes the state it was given.  So states can be kept, copied and gone back to.  Every reducer has an exact no-op
setting, looks at the past only, and keeps a state whose size does not grow with the stream.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from penstock.core import Frame
from penstock.errors import CompositionError, InputError
from penstock.registry import Named

Stage = Literal["frames", "tokens", "tower"]


class Reducer(Named):
    """Base of all reducers."""

    stage: ClassVar[Stage]

    @classmethod
    def noop(cls) -> Self:
        """The setting under which everything passes unchanged."""
        raise CompositionError(f"{cls.__name__} does not say how it does nothing: define noop().")

    def start(self) -> Any:
        """The state at the beginning of a stream."""
        return ()


class Verdict(NamedTuple):
    """What becomes of a frame."""

    frame: Frame | None  # as it goes on, or None: not worth encoding
    score: float = 1.0  # how new it is, in the reducer's own measure


class FrameReducer(Reducer, ABC):
    """Decides on frames before they are encoded."""

    stage: ClassVar[Stage] = "frames"

    @abstractmethod
    def step(self, state: Any, frame: Frame) -> tuple[Any, Verdict]:
        """The next state, and what becomes of the frame."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """The tokens of one moment, between the vision tower and the language model."""

    tokens: Tensor  # [P, D]
    grid: tuple[int, int]  # rows, columns; P = rows * columns
    image: np.ndarray | None = None  # uint8 [height, width, 3], for rules that look at pixels
    t: float = 0.0

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.shape[0] != self.grid[0] * self.grid[1]:
            raise InputError(
                f"{tuple(self.tokens.shape)} tokens do not fill a grid of {self.grid}: give [rows*columns, D]."
            )


@dataclasses.dataclass(frozen=True)
class Reduced:
    """What of a moment goes on to the language model."""

    index: Tensor  # int64 [k], ascending: which tokens stay, at their own positions
    carriers: Tensor | None = None  # [c, D] new tokens that stand behind them
    change: float = 1.0  # how new the moment is, 0 to 1
    skips: bool = False  # nothing of the moment goes on, not even what frames it


class TokenReducer(Reducer, ABC):
    """Decides on visual tokens before they are read."""

    stage: ClassVar[Stage] = "tokens"

    @abstractmethod
    def step(self, state: Any, visual: Moment) -> tuple[Any, Reduced]:
        """The next state, and the tokens that stay."""


def everything(visual: Moment) -> Tensor:
    """The indices of all tokens."""
    return torch.arange(visual.tokens.shape[0])


def state_bytes(state: Any) -> int:
    """Bytes of the tensors and arrays in a state."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, np.ndarray):
        return int(state.nbytes)
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return sum(state_bytes(getattr(state, f.name)) for f in dataclasses.fields(state))
    if isinstance(state, (tuple, list)):
        return sum(state_bytes(part) for part in state)
    return 8 if isinstance(state, (int, float)) else 0


def cells(image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Means over the cells of a grid: float32 [rows, columns, channels], 0..1; as good as equal cells."""
    rows = np.linspace(0, image.shape[0], grid[0] + 1).astype(int)[:-1]
    columns = np.linspace(0, image.shape[1], grid[1] + 1).astype(int)[:-1]
    if image.shape[0] < grid[0] or image.shape[1] < grid[1]:
        raise InputError(f"a picture of {image.shape[:2]} has no grid of {grid}: give a larger one.")
    sums = np.add.reduceat(np.add.reduceat(image.astype(np.float32), rows, axis=0), columns, axis=1)
    heights = np.diff(np.append(rows, image.shape[0]))[:, None, None]
    widths = np.diff(np.append(columns, image.shape[1]))[None, :, None]
    return sums / (heights * widths * 255.0)


def thumbnail(image: np.ndarray, side: int = 16) -> np.ndarray:
    """A small picture for comparing frames: float32 [side, side, 3], 0..1; tiny pictures are enlarged."""
    if min(image.shape[:2]) < side:
        image = image.repeat(-(-side // image.shape[0]), axis=0).repeat(-(-side // image.shape[1]), axis=1)
    step = max(1, min(image.shape[:2]) // (side * 8))  # at most about eight pixels a side of a cell are looked at
    return cells(image[::step, ::step], (side, side))
