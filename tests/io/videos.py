"""Small videos, written by PyAV: a bright square that moves, so that frames can be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

SIZE = (48, 64)  # height, width


def picture(i: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 [height, width, 3]: frame i."""
    image = np.full((*size, 3), 30, np.uint8)
    left = (4 * i) % (size[1] - 8)
    image[4:20, left : left + 8] = (200, 60 + (13 * i) % 150, 40)
    return image


def write(
    path: Path | str, count: int = 20, *, size: tuple[int, int] = SIZE, times: Sequence[float] | None = None,
    rate: int = 10, group: int = 5, rotation: float | None = None, kind: str | None = None, codec: str = "mpeg4",
    b_frames: int = 0,
) -> Path:  # fmt: skip
    """A video of `count` frames at `rate` per second (or at these seconds), a keyframe every `group` frames."""
    import av

    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
        stream.codec_context.gop_size = group
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        stream.bit_rate = 400_000
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(i, size), format="rgb24")
            frame.pts = round(1000 * (i / rate if times is None else times[i]))
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Path(path)
