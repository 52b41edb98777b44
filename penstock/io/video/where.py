"""From what a caller writes to a source of frames."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

from penstock.core import Clock
from penstock.errors import InputError, UnknownName
from penstock.io.frames import FrameSource
from penstock.io.video.container import hidden
from penstock.io.video.folder import PICTURES, VIDEOS, PictureFolder, VideoFolder, walk
from penstock.io.video.pipe import Pipe
from penstock.io.video.stream import Opening, VideoSource
from penstock.io.video.world import WORLDS, Generated

ATTEMPTS = 8  # to reconnect, in a row: about two minutes


def open_frames(
    where: str, *, rate: float | None = None, longest: int | None = 768, workers: int = 1, seed: int = 0,
    clock: Clock | None = None,
) -> FrameSource:  # fmt: skip
    """The source that `where` names.

    A video file, a picture, a folder of either, `-` (a video on standard input), an address (http, https, rtsp, rtmp,
    udp, ...; HLS included), `/dev/videoN`, `screen` or `screen:DISPLAY`, `world:shapes` (made from `seed`).
    `rate`: frames per second at most.  `longest`: larger pictures are scaled down to so many pixels a side.
    Raises InputError for what is missing or not a video, UnknownName for a world that does not exist.
    """
    settings: dict[str, Any] = {"rate": rate, "longest": longest, "workers": workers, "clock": clock}
    if where == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise InputError("standard input is a terminal: pipe a video into it, or name a file.")
        return VideoSource(Opening(Pipe(sys.stdin.fileno()), "standard input"), **settings)
    if where.startswith("world:"):
        return _world(where.removeprefix("world:"), rate, seed)
    if where == "screen" or where.startswith("screen:"):
        return VideoSource(_screen(where.partition(":")[2]), **settings)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", where):
        return _address(where, settings)
    return _path(where, rate, longest, settings)


def _world(name: str, rate: float | None, seed: int) -> FrameSource:
    if name not in WORLDS:
        raise UnknownName("world", name, WORLDS)
    from penstock.worlds.shapes import Shapes

    rate = 2.0 if rate is None else rate
    return Generated(Shapes(seed=seed, rate=rate), f"the shapes world of seed {seed}", rate=rate)


def _screen(display: str) -> Opening:
    if sys.platform != "linux":
        raise InputError(
            "the screen is read through X11, on Linux only: stream it by other means and give the address."
        )
    display = display or os.environ.get("DISPLAY", "")
    if not display:
        raise InputError("there is no screen here (DISPLAY is not set): write screen::0.0, or name a file.")
    return Opening(display, f"screen {display}", "x11grab", {"framerate": "30"}, is_live=True, attempts=ATTEMPTS)


def _address(where: str, settings: dict[str, Any]) -> FrameSource:
    scheme = where.partition("://")[0].lower()
    if scheme == "file":
        return open_frames(where[7:], rate=settings["rate"], longest=settings["longest"], workers=settings["workers"])
    shown = hidden(where)
    if scheme in ("http", "https"):  # live unless it has a length, which only opening it tells
        source = VideoSource(Opening(where, shown, is_live=True, attempts=ATTEMPTS), **settings)
        return source if source.is_endless else _recorded(source, where, shown, settings)
    return VideoSource(Opening(where, shown, is_live=True, attempts=ATTEMPTS), **settings)


def _recorded(source: VideoSource, where: str, shown: str, settings: dict[str, Any]) -> VideoSource:
    """A file on a server: it waits for whoever is slow."""
    source.is_live = False
    source.opening = Opening(where, shown)
    return source


def _path(where: str, rate: float | None, longest: int | None, settings: dict[str, Any]) -> FrameSource:
    path = Path(where)
    try:
        mode = path.stat().st_mode if where else None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"there is no video {where[:120]!r} ({why.lower()}): check the path.") from None
    if mode is None:
        raise InputError("the source is empty: name a video, a folder, an address or world:shapes.")
    if stat.S_ISDIR(mode):
        if next(walk(path, PICTURES), None) is None and next(walk(path, VIDEOS), None) is not None:
            return VideoFolder(path, **settings)
        return PictureFolder(path, rate=rate, longest=longest)
    if stat.S_ISCHR(mode):
        return VideoSource(Opening(where, where, "v4l2", is_live=True, attempts=ATTEMPTS), **settings)
    if stat.S_ISFIFO(mode):
        return VideoSource(Opening(Pipe(os.open(path, os.O_RDONLY)), str(path)), **settings)
    if stat.S_ISREG(mode) and path.stat().st_size == 0:
        raise InputError(f"{path} is empty: give a video.")
    return VideoSource(Opening(str(path), str(path)), **settings)
