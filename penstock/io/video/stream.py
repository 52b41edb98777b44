"""A video that PyAV can open, as frames: a file, an address, a device, a pipe.

What goes wrong on the way is repaired and counted: packets that cannot be decoded are left out, missing times are
made up, pictures that change their size are fitted into the first one's, a live stream that breaks off is opened again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from penstock.core import Clock, Frame, RealClock
from penstock.errors import InputError
from penstock.io.frames import Notice
from penstock.io.video.container import Gone, explained, library, open_container, video_stream
from penstock.io.video.parallel import Corrupt, decode_groups
from penstock.io.video.pictures import Pictures
from penstock.io.video.pipe import Pipe
from penstock.io.video.times import Grid, Times

_BROKEN = 64  # errors in a row after which nothing more is expected of a stream
_QUIET = 10.0  # seconds of stream between two sentences about damage
_FIRST, _LONGEST = 0.5, 30.0  # seconds between two attempts to reconnect: doubled each time


@dataclass(frozen=True)
class Opening:
    """How to open, and to open again."""

    what: Any  # a path, an address, a device's name, or a file object
    name: str
    kind: str | None = None  # PyAV's name of the format; None looks
    options: dict[str, str] | None = None
    is_live: bool = False
    attempts: int = 0  # to open again, in a row, when it breaks off

    def open(self) -> Any:
        return open_container(self.what, self.name, self.kind, self.options)


class VideoSource:
    """Frames of one opened video.  `rate` keeps the first frame of every 1/rate seconds before it is converted."""

    def __init__(
        self, opening: Opening, *, rate: float | None = None, longest: int | None = None, workers: int = 1,
        clock: Clock | None = None,
    ) -> None:  # fmt: skip
        self.opening, self.longest, self.workers = opening, longest, workers
        self.clock = clock or RealClock()
        self.name, self.is_live = opening.name, opening.is_live
        self._container: Any = opening.open()
        stream = video_stream(self._container)
        average = float(stream.average_rate or stream.guessed_rate or 0) or None
        self.rate = average if rate is None else min(rate, average or rate)
        self.wanted_rate = rate
        duration = self._container.duration
        self.is_endless = opening.is_live and not duration
        self.seconds = duration / 1e6 if duration else None
        self.corrupt = 0  # packets that could not be decoded
        self.decoded = 0  # pictures, before the rate
        self._closed = threading.Event()

    def close(self) -> None:
        self._closed.set()
        if isinstance(self.opening.what, Pipe):
            self.opening.what.close()

    def frames(self) -> Iterator[Frame | Notice]:
        """From the beginning (once: a pipe cannot be read twice)."""
        self.times = Times(1 / (float(video_stream(self._container).average_rate or 0) or 25.0))
        self.pictures, self.grid = Pictures(self.longest), Grid(self.wanted_rate)
        self._index, tried, began = 0, 0, self.clock.now()
        while not self._closed.is_set():
            before = self.decoded
            try:
                yield from self._read()
                why = "it ended"
                if not self.is_endless:
                    return
            except Gone as gone:
                why = str(gone)
            except InputError as error:  # nobody can go on from here, but the stream up to here was fine
                yield Notice(self._now, "ended", str(error))
                return
            finally:
                self._container.close()
            tried = 1 if self.decoded > before else tried + 1
            reopened = yield from self._reconnect(tried, why)
            if not reopened:
                return
            self.times.restart(self.clock.now() - began)

    @property
    def _now(self) -> float:
        return self.times.last or 0.0

    def _reconnect(self, tried: int, why: str) -> Any:
        """Wait, longer each time, and open again; False when it is given up."""
        while tried <= self.opening.attempts and not self._closed.is_set():
            wait = min(_LONGEST, _FIRST * 2 ** (tried - 1))
            yield Notice(self._now, "reconnecting", f"{self.name}: {why.rstrip('.')}; again in {wait:g} s.")
            self.clock.sleep(wait)
            try:
                self._container = self.opening.open()
            except InputError as error:
                why, tried = str(error), tried + 1
            else:
                return True
        yield Notice(self._now, "ended", f"{self.name}: {why.rstrip('.')}; given up after {tried - 1} attempts.")
        return False

    # -- one opening ------------------------------------------------------------------------------------------------

    def _read(self) -> Iterator[Frame | Notice]:
        stream = video_stream(self._container)
        start = self._container.start_time
        if self.times.last is None and start is not None and not self.is_live:
            self.times.origin = start / 1e6
        turn: int | None = None
        damaged: float | None = None  # when damage was told last
        repaired = 0
        size = self.pictures.given
        for frame in self._decode(stream):
            if self._closed.is_set():
                return
            if isinstance(frame, Corrupt) or frame.is_corrupt:
                self.corrupt += 1
                if damaged is None or self._now >= damaged + _QUIET:
                    damaged = self._now
                    yield Notice(self._now, "corrupt", f"{self.name} is damaged here: what cannot be read is left out.")
                if isinstance(frame, Corrupt):
                    continue
            self.decoded += 1
            turn = frame.rotation if turn is None or frame.rotation else turn
            t = self.times.next(None if frame.pts is None else float(frame.pts * stream.time_base))
            if self.times.repaired > repaired == 0:
                repaired = 1
                yield Notice(t, "timestamps", f"{self.name} has frames without usable times: they are made up.")
            if not self.grid.keeps(t):
                continue
            image = self.pictures.convert(frame, turn)
            if size is not None and self.pictures.given != size:
                yield Notice(
                    t, "resized", f"{self.name} changed from {_by(size)} to {_by(self.pictures.given)} pixels."
                )
            size = self.pictures.given
            yield Frame(image, t, self._index)
            self._index += 1
        if self.decoded == 0:
            raise InputError(f"{self.name} has no picture that can be decoded: check that the file is complete.")

    def _decode(self, stream: Any) -> Iterator[Any]:
        packets = self._packets(stream)
        if self.workers > 1 and not self.is_live and isinstance(self.opening.what, str):
            return self._in_groups(stream, packets)
        return self._in_turn(stream, packets)

    def _in_groups(self, stream: Any, packets: Iterator[Any]) -> Iterator[Any]:
        decoders = _Decoders(self.opening)
        try:
            yield from decode_groups(packets, decoders, self.workers, wanted=self._prefilter(stream))
        finally:
            decoders.close()

    def _in_turn(self, stream: Any, packets: Iterator[Any]) -> Iterator[Any]:
        av = library()
        if not self.is_live:
            stream.thread_type = "AUTO"
        for packet in packets:
            try:
                yield from packet.decode()
            except av.error.EOFError:
                return
            except (av.error.FFmpegError, ValueError):
                yield Corrupt()
        try:
            yield from stream.codec_context.decode(None)
        except (av.error.FFmpegError, ValueError):
            return

    def _packets(self, stream: Any) -> Iterator[Any]:
        """Compressed packets; errors in the container are stepped over, up to a point."""
        av = library()
        errors = 0
        while True:
            try:
                for packet in self._container.demux(stream):
                    if packet.size:
                        errors = 0
                        yield packet
                return
            except av.error.EOFError:
                return
            except (av.error.FFmpegError, OSError) as error:
                trouble = explained(error, self.name)
                errors += 1
                if isinstance(trouble, Gone) or errors >= _BROKEN:
                    raise trouble from None

    def _prefilter(self, stream: Any) -> Callable[[], Callable[[Any], bool]] | None:
        """Lets a worker leave out frames that the rate will not keep: those in the same cell as the one before."""
        rate, base = self.wanted_rate, stream.time_base
        origin = self.times.origin
        if rate is None or origin is None:
            return None

        def fresh() -> Callable[[Any], bool]:
            times, grid, first = Times(self.times.period, origin), Grid(rate), True

            def keeps(frame: Any) -> bool:
                nonlocal first
                if frame.pts is None:
                    return True
                kept = grid.keeps(times.next(float(frame.pts * base)))
                kept, first = kept or first, False
                return kept

            return keeps

        return fresh


class _Decoders:
    """Decoders with all that the container knows of the stream (colours, turning): each opens it once more."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.opened: list[Any] = []

    def __call__(self) -> Any:
        self.opened.append(self.opening.open())
        context = video_stream(self.opened[-1]).codec_context
        context.thread_count = 1
        return context

    def close(self) -> None:
        for container in self.opened:
            container.close()


def _by(size: tuple[int, int] | None) -> str:
    return "?" if size is None else f"{size[1]}x{size[0]}"
