"""Decoded frames as RGB arrays of one size: turned as their metadata says, scaled, with bars where shapes differ."""

from __future__ import annotations

from typing import Any

import numpy as np


class Pictures:
    """Converts frames of one stream.  The first one fixes the size; later ones are fitted into it.

    `longest` is the largest side in pixels that a picture may have; larger ones are scaled down while decoding.
    """

    def __init__(self, longest: int | None = None) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()
        self.longest = longest
        self.size: tuple[int, int] | None = None  # height, width of what comes out
        self.given: tuple[int, int] | None = None  # height, width of what the last frame was, turned

    def convert(self, frame: Any, turn: int | None = None) -> np.ndarray:
        """uint8 [height, width, 3]; `turn`: degrees counter-clockwise, if not the frame's own."""
        turns = round((frame.rotation if turn is None else turn) / 90) % 4
        height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        self.given = (height, width)
        if self.size is None:
            scale = 1.0 if self.longest is None else min(1.0, self.longest / max(height, width))
            self.size = (max(1, round(height * scale)), max(1, round(width * scale)))
        fit = min(self.size[0] / height, self.size[1] / width)
        exact = abs(self.size[0] - height * fit) <= 1 and abs(self.size[1] - width * fit) <= 1
        inner = self.size if exact else (max(1, round(height * fit)), max(1, round(width * fit)))
        wide, high = (inner[0], inner[1]) if turns % 2 else (inner[1], inner[0])
        scaled = self._reformatter.reformat(frame, width=wide, height=high, format="rgb24")
        image: np.ndarray = scaled.to_ndarray()
        if turns:
            image = np.ascontiguousarray(np.rot90(image, turns))
        return image if inner == self.size else _framed(image, self.size)


def _framed(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture in the middle of a black one."""
    out = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - image.shape[0]) // 2, (size[1] - image.shape[1]) // 2
    out[top : top + image.shape[0], left : left + image.shape[1]] = image
    return out
