"""Groups of pictures that can be decoded apart from each other: what keyframe-parallel decoding cuts a stream into.

A group begins with a keyframe.  A keyframe whose followers are shown before it (an open group) needs the pictures of
the group before, so the stream is not cut there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

LOOK = 17  # packets behind a keyframe that are looked at: decoders reorder at most 16 pictures


class Packet(Protocol):
    """What is needed of a packet."""

    @property
    def is_keyframe(self) -> bool: ...

    @property
    def pts(self) -> int | None: ...


def cut(packets: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Packets in their order, each with the number of its group; at most LOOK of them are held back."""
    source, ahead = iter(packets), deque[Any]()
    group, first = 0, True
    while True:
        while len(ahead) <= LOOK and (packet := next(source, None)) is not None:
            ahead.append(packet)
        if not ahead:
            return
        if ahead[0].is_keyframe and not first and _stands_alone(ahead):
            group += 1
        first = False
        yield group, ahead.popleft()


def _stands_alone(ahead: deque[Any]) -> bool:
    """Whether nothing behind the keyframe ahead[0] is shown before it."""
    begin = ahead[0].pts
    if begin is None:
        return False
    for i in range(1, len(ahead)):
        if ahead[i].is_keyframe:
            break
        if ahead[i].pts is None or ahead[i].pts < begin:
            return False
    return True
