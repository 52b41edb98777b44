"""The shapes world in a video file, with a real codec."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from penstock.core import Frame
from penstock.errors import InputError, OutputError


def record(frames: Any, path: Path, seconds: float, codec: str | None) -> int:
    """Write the next `seconds` of a world (with `rate` and `size`) to `path`; returns the number of frames."""
    try:
        import av
    except ImportError:
        raise InputError("video files need PyAV: install penstock[video].") from None
    count = round(seconds * frames.rate)
    if count < 1:
        raise InputError(f"{seconds:g} seconds hold no frame at {frames.rate:g} frames per second: give more seconds.")
    height, width = frames.size
    if height % 2 or width % 2:
        raise InputError(f"video codecs need even sides, not {height}x{width}: choose another size.")
    name = codec or ("libvpx-vp9" if path.suffix == ".webm" else "h264")
    try:
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(name, rate=Fraction(frames.rate).limit_denominator(1001))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            if name in ("h264", "libx264"):
                stream.options = {"crf": "18", "preset": "veryfast"}
            for frame in _next(frames, count):
                picture = av.VideoFrame.from_ndarray(frame.image, format="rgb24")
                for packet in stream.encode(picture):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
    except (av.FFmpegError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise OutputError(f"the video {path} cannot be written ({reason}): choose .mp4, .mkv, .avi or .webm.") from None
    return count


def _next(frames: Iterator[Frame], count: int) -> Iterator[Frame]:
    return islice(frames, count)
