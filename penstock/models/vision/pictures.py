"""The arithmetic of image processors: resize, rescale, normalise, cut into patches.  No torchvision, no hub files."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penstock.errors import InputError

_RESAMPLE = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Arithmetic:
    """What a processor does to the pixels of a picture."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    resample: int = 3  # as in PIL: 0 nearest, 2 bilinear, 3 bicubic
    size: tuple[int, int] | None = None  # height and width of all pictures; None: chosen by the family
    least: int = 128 * 28 * 28  # pixels of a picture whose size is chosen
    most: int = 768 * 28 * 28

    def pixels(self, images: list[np.ndarray], size: tuple[int, int]) -> Tensor:
        """[n, 3, height, width] float32 of uint8 pictures [h, w, 3]."""
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        x = stacked.float()
        if x.shape[-2:] != size:
            mode = _RESAMPLE.get(self.resample, "bicubic")
            smooth = {} if mode.startswith("nearest") else {"antialias": True, "align_corners": False}
            x = torch.nn.functional.interpolate(x, size, mode=mode, **smooth).round().clamp(0, 255)
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (self.mean, self.std))
        out: Tensor = (x * self.scale - mean) / std
        return out


def arithmetic(folder: Path | None, mean: tuple[float, ...], std: tuple[float, ...]) -> Arithmetic:
    """What the processor files of a model folder say; the family's constants where there are none.

    Raises InputError for files that are not what a processor writes.
    """
    found: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        path = None if folder is None else folder / name
        if path is not None and path.is_file():
            try:
                found |= json.loads(path.read_text(encoding="utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError):
                raise InputError(f"{path} is not valid JSON: download it again.") from None
    size = found.get("size") if isinstance(found.get("size"), dict) else {}
    assert isinstance(size, dict)
    fixed = (int(size["height"]), int(size["width"])) if {"height", "width"} <= size.keys() else None
    least = found.get("min_pixels") or size.get("shortest_edge")
    most = found.get("max_pixels") or size.get("longest_edge")
    base = Arithmetic(
        tuple(found.get("image_mean", mean)), tuple(found.get("image_std", std)),
        float(found.get("rescale_factor", 1 / 255)), int(found.get("resample", 3)), fixed,
    )  # fmt: skip
    if len(base.mean) != 3 or len(base.std) != 3 or not all(base.std):
        raise InputError("the image processor's mean and std are not three numbers each: download its file again.")
    return Arithmetic(
        base.mean, base.std, base.scale, base.resample, fixed,
        int(least) if least and fixed is None else base.least, int(most) if most and fixed is None else base.most,
    )  # fmt: skip


def fitted(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """The size nearest to a picture's in which both sides are multiples of `factor` and the area is within bounds."""
    h, w = max(factor, round(height / factor) * factor), max(factor, round(width / factor) * factor)
    if h * w > most:
        shrink = math.sqrt(height * width / most)
        h = max(factor, math.floor(height / shrink / factor) * factor)
        w = max(factor, math.floor(width / shrink / factor) * factor)
    elif h * w < least:
        grow = math.sqrt(least / (height * width))
        h, w = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return h, w


def patches(pixels: Tensor, side: int, merge: int, depth: int) -> Tensor:
    """[patches, 3 * depth * side * side] of pictures [frames, 3, h, w], `depth` frames joined in time.

    Patches that a tower merges stand together: time, block row, block column, row and column in the block.
    """
    frames, channels, height, width = pixels.shape
    rows, columns = height // side, width // side
    x = pixels.reshape(
        frames // depth, depth, channels, rows // merge, merge, side, columns // merge, merge, side
    )  # fmt: skip
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, channels * depth * side * side)
