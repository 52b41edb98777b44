"""Bytes of buffers, counted for as long as somebody refers to them."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any


class Tally:
    """Used under the pool's lock; the collector only leaves notes."""

    def __init__(self) -> None:
        self._sizes: dict[int, tuple[Any, int]] = {}  # identity -> (weak reference, bytes)
        self._gone: deque[int] = deque()
        self._total = 0

    def add(self, buffers: Iterable[Any]) -> None:
        """Count buffers (with a tensor `data`) that are not counted yet."""
        self._settle()
        for buffer in buffers:
            key = id(buffer)
            if key not in self._sizes:
                size = buffer.data.untyped_storage().nbytes()
                self._sizes[key] = weakref.ref(buffer, partial(_note, self._gone, key)), size
                self._total += size

    @property
    def nbytes(self) -> int:
        """Bytes of those that are still there."""
        self._settle()
        return self._total

    def _settle(self) -> None:
        while self._gone:  # an identity is noted before another buffer can have it
            self._total -= self._sizes.pop(self._gone.popleft())[1]


def _note(gone: deque[int], key: int, _: object) -> None:
    gone.append(key)
