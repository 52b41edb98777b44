"""showui: of neighbouring patches that look the same keep a few (screens, drawings).  arXiv:2411.17465
Differs from the paper: tokens are left out of the language model as a whole, not of chosen layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch

from penstock.errors import InputError
from penstock.reducers.base import Moment, Reduced, TokenReducer, everything
from penstock.registry import check_range


@dataclass(frozen=True)
class ShowUI(TokenReducer):
    """Neighbours are joined when the L2 norm of their difference (colours 0 to 1) is below `difference`; of a
    component of n tokens max(1, n - round(n x `ratio`)) stay, evenly spaced.  Ratio 0 keeps all.
    """

    name: ClassVar[str] = "showui"
    title: ClassVar[str] = "ShowUI's connected components: a few tokens of every uniform area"
    source: ClassVar[str] = "arXiv:2411.17465"
    differs: ClassVar[str] = "dropped tokens are not read at all; the paper's rejoin behind the layer"

    ratio: float = 0.5
    difference: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, ratio=(0.0, 1.0), difference=(0.0, 1e9))

    @classmethod
    def noop(cls) -> Self:
        return cls(ratio=0.0)

    def step(self, state: tuple[()], visual: Moment) -> tuple[tuple[()], Reduced]:
        if self.ratio == 0:
            return state, Reduced(everything(visual))
        if visual.image is None:
            raise InputError("showui needs the picture beside its tokens: choose stc or timechat instead.")
        labels = components(visual.image, visual.grid, self.difference)
        stays: list[int] = []
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            count = max(1, len(members) - round(len(members) * self.ratio))
            stays += [int(members[i * len(members) // count]) for i in range(count)]
        return state, Reduced(torch.tensor(sorted(stays)), None, len(stays) / len(labels))


def components(image: np.ndarray, grid: tuple[int, int], difference: float) -> np.ndarray:
    """int [rows * columns]: the smallest index of each patch's component."""
    rows, columns = grid
    height, width = image.shape[0] // rows, image.shape[1] // columns
    if height == 0 or width == 0:
        raise InputError(f"a picture of {image.shape[:2]} has no grid of {grid}: give a larger one.")
    cut = image[: rows * height, : columns * width].astype(np.float32) / 255
    patches = cut.reshape(rows, height, columns, width, 3).transpose(0, 2, 1, 3, 4).reshape(rows, columns, -1)
    right = np.linalg.norm(patches[:, 1:] - patches[:, :-1], axis=-1) < difference
    below = np.linalg.norm(patches[1:] - patches[:-1], axis=-1) < difference
    parent = list(range(rows * columns))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for r, c in np.argwhere(right):
        _join(parent, root(r * columns + c), root(r * columns + c + 1))
    for r, c in np.argwhere(below):
        _join(parent, root(r * columns + c), root((r + 1) * columns + c))
    return np.array([root(i) for i in range(rows * columns)])


def _join(parent: list[int], a: int, b: int) -> None:
    parent[max(a, b)] = min(a, b)
