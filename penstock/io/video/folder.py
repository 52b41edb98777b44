"""A folder as a stream: its pictures one after another at a rate, or its videos one behind the other."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from penstock.core import Frame
from penstock.errors import InputError
from penstock.io.frames import Notice
from penstock.io.video.container import library
from penstock.io.video.pictures import Pictures
from penstock.io.video.stream import Opening, VideoSource

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".ts", ".m4v", ".mpg", ".mpeg", ".gif", ".y4m", ".flv", ".ogv")
RATE = 1.0  # pictures per second, where none is asked for


class PictureFolder:
    """Pictures by name (2.png before 10.png), those of subfolders behind; links to folders are not followed."""

    is_endless = False
    is_live = False

    def __init__(self, path: Path, *, rate: float | None = None, longest: int | None = None) -> None:
        library()
        self.path, self.name = path, str(path)
        self.rate = rate or RATE
        self._pictures = Pictures(longest)
        self._closed = False
        if next(self._files(), None) is None:
            raise InputError(f"the folder {path} has neither pictures nor videos: give one that has some, or a file.")
        self.seconds: float | None = None

    def close(self) -> None:
        self._closed = True

    def frames(self) -> Iterator[Frame | Notice]:
        skipped = index = 0
        for path in self._files():
            if self._closed:
                return
            t = index / self.rate
            try:
                image = self._pictures.convert(picture(path))
            except InputError:
                skipped += 1
                if skipped == 1:
                    yield Notice(t, "skipped", f"{path} is not a picture that can be read: left out, as are others.")
                continue
            yield Frame(image, t, index)
            index += 1
        if index == 0:
            yield Notice(0.0, "ended", f"the folder {self.path} has no picture that can be read.")

    def _files(self) -> Iterator[Path]:
        return walk(self.path, PICTURES)


class VideoFolder:
    """The videos of a folder by name, as one stream whose time goes on."""

    is_endless = False
    is_live = False

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path, self.name = path, str(path)
        self._open: Callable[[Path], VideoSource] = lambda file: VideoSource(Opening(str(file), str(file)), **settings)
        self.rate: float | None = settings.get("rate")
        self.seconds: float | None = None
        self._now: VideoSource | None = None
        self._closed = False

    def close(self) -> None:
        self._closed = True
        if self._now is not None:
            self._now.close()

    def frames(self) -> Iterator[Frame | Notice]:
        index, begin, end = 0, 0.0, 0.0
        for path in walk(self.path, VIDEOS):
            if self._closed:
                return
            try:
                self._now = self._open(path)
            except InputError as error:
                yield Notice(begin, "skipped", str(error))
                continue
            for item in self._now.frames():
                if isinstance(item, Frame):
                    end = begin + item.t
                    yield Frame(item.image, end, index)
                    index += 1
                else:
                    yield Notice(begin + item.t, item.kind if item.kind != "ended" else "skipped", item.text)
            begin = end + (1 / self._now.rate if self._now.rate else 0.04)


def picture(path: Path) -> Any:
    """The first frame of a picture file."""
    av = library()
    try:
        with av.open(str(path)) as container:
            frame = next(iter(container.decode(video=0)), None)
    except (av.error.FFmpegError, OSError, IndexError, ValueError):
        frame = None
    if frame is None:
        raise InputError(f"{path} is not a picture that can be read: give png or jpg files.")
    return frame


def walk(path: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Files with one of these suffixes: a folder's own by natural order, then those of its subfolders."""
    for folder, inner, names in os.walk(path):
        inner[:] = sorted((name for name in inner if not name.startswith(".")), key=_natural)
        for name in sorted(names, key=_natural):
            if not name.startswith(".") and name.lower().endswith(suffixes) and (file := Path(folder, name)).is_file():
                yield file


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
