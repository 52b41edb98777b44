"""Keyframe-parallel decoding: one thread reads packets, several decode groups of pictures, frames come out in order.

    packets ──► cut into groups ──► worker 1: group 0, 2, ...  ──► in order of the groups ──► frames
                                ──► worker 2: group 1, 3, ...

After QuickVideo's QuickCodec (arXiv:2505.16175).  Differs: groups are handed out as they are read, so that the length
of the file need not be known and what is decoded ahead is bounded in bytes; open groups are not cut.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from penstock.io.video.groups import cut

AHEAD = 128 << 20  # bytes of decoded pictures that may wait
_PACKETS = 256  # compressed packets that may wait in a group
_WAIT = 0.1  # seconds between two looks at whether everything was stopped


@dataclass
class _Group:
    """Packets on their way to a worker, and what became of them."""

    index: int
    packets: queue.Queue[Any] = field(default_factory=lambda: queue.Queue(_PACKETS))
    frames: queue.Queue[Any] = field(default_factory=queue.Queue)  # frames, then None; bounded by _Room


class _Room:
    """Bytes of decoded pictures: the group that is being read always has room for a few."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.head, self.peak = limit, 0, 0, 0
        self.changed = threading.Condition()

    def take(self, group: _Group, size: int, stopped: threading.Event) -> None:
        with self.changed:
            while not stopped.is_set():
                if self.used + size <= self.limit or (group.index == self.head and group.frames.qsize() < 4):
                    break
                self.changed.wait(_WAIT)
            self.used += size
            self.peak = max(self.peak, self.used)

    def give(self, size: int) -> None:
        with self.changed:
            self.used -= size
            self.changed.notify_all()

    def move(self, head: int) -> None:
        with self.changed:
            self.head = head
            self.changed.notify_all()


def decode_groups(
    packets: Iterable[Any],
    decoder: Callable[[], Any],
    workers: int = 2,
    ahead: int = AHEAD,
    wanted: Callable[[], Callable[[Any], bool]] | None = None,
) -> Iterator[Any]:
    """Frames in order, or `Corrupt` where a packet could not be decoded.

    `decoder()` makes a codec context with its settings; `wanted()` makes a test of the frames of one group, in their
    order, that lets a worker throw away what the reader would not use.  An error of `packets` is raised here, behind
    the frames before it.
    """
    stopped, room = threading.Event(), _Room(ahead)
    to_do: queue.Queue[_Group | None] = queue.Queue()
    in_order: queue.Queue[_Group | BaseException | None] = queue.Queue(2 * workers)
    threads = [threading.Thread(target=_feed, args=(packets, to_do, in_order, stopped, workers), daemon=True)]
    threads += [
        threading.Thread(target=_work, args=(decoder(), to_do, room, stopped, wanted), daemon=True)
        for _ in range(workers)
    ]
    for thread in threads:
        thread.start()
    try:
        while (group := in_order.get()) is not None:
            if isinstance(group, BaseException):
                raise group
            room.move(group.index)
            while (frame := group.frames.get()) is not None:
                if isinstance(frame, BaseException):
                    raise frame
                room.give(_size(frame))
                yield frame
    finally:
        stopped.set()
        room.move(room.head)
        for thread in threads:
            thread.join(2.0)


class Corrupt:
    """A packet that could not be decoded."""


def _feed(packets: Iterable[Any], to_do: Any, in_order: Any, stopped: threading.Event, workers: int) -> None:
    group: _Group | None = None
    try:
        for index, packet in cut(packets):
            if group is None or index != group.index:
                if group is not None:
                    _put(group.packets, None, stopped)
                group = _Group(index)
                _put(in_order, group, stopped)  # bounded: what is cut is never far ahead of what is read
                to_do.put(group)
            _put(group.packets, packet, stopped)
            if stopped.is_set():
                return
        end: BaseException | None = None
    except BaseException as error:
        end = error
    finally:
        if group is not None:
            _put(group.packets, None, stopped)
        for _ in range(workers):
            to_do.put(None)
    _put(in_order, end, stopped)


def _work(context: Any, to_do: Any, room: _Room, stopped: threading.Event, wanted: Any) -> None:
    while (group := to_do.get()) is not None and not stopped.is_set():
        keep = wanted() if wanted is not None else None
        try:
            ended = False
            while not ended and not stopped.is_set():
                try:
                    packet = group.packets.get(timeout=_WAIT)
                except queue.Empty:
                    continue
                ended = packet is None
                for frame in _decoded(context, packet):
                    if keep is None or isinstance(frame, Corrupt) or keep(frame):
                        room.take(group, _size(frame), stopped)
                        group.frames.put(frame)
            context.flush_buffers()
        except BaseException as error:
            group.frames.put(error)
        group.frames.put(None)


def _decoded(context: Any, packet: Any) -> list[Any]:
    """The pictures a packet completes; None empties the decoder."""
    import av

    try:
        return list(context.decode(packet))
    except av.error.EOFError:
        return []
    except (av.error.FFmpegError, ValueError):
        return [Corrupt()]


def _size(frame: Any) -> int:
    return 0 if isinstance(frame, Corrupt) else frame.width * frame.height * 3 // 2


def _put(into: Any, value: Any, stopped: threading.Event) -> None:
    """Wait for room, but not for ever."""
    while not stopped.is_set():
        try:
            into.put(value, timeout=_WAIT)
        except queue.Full:
            continue
        return
