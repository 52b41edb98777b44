"""Generated video as a source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from penstock.core import Frame
from penstock.io.frames import Notice
from penstock.io.video.times import Grid

WORLDS = ("shapes",)


class Generated:
    """Any iterable of frames as a source; `rate` keeps the first frame of every 1/rate seconds."""

    def __init__(
        self, frames: Iterable[Frame], name: str, *, rate: float | None = None, wanted: float | None = None,
        is_endless: bool = True, is_live: bool = False,
    ) -> None:  # fmt: skip
        self._frames, self.name, self.is_endless, self.is_live = frames, name, is_endless, is_live
        self.rate = wanted or rate
        self.wanted_rate = wanted
        self.seconds: float | None = None
        self._closed = False

    def close(self) -> None:
        self._closed = True

    def frames(self) -> Iterator[Frame | Notice]:
        grid, index = Grid(self.wanted_rate), 0
        for frame in self._frames:
            if self._closed:
                return
            if grid.keeps(frame.t):
                yield Frame(frame.image, frame.t, index)
                index += 1
