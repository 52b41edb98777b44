"""A queue between two threads that never grows: who is slow makes the other wait, or loses the oldest items.

What was put in was taken out, dropped, abandoned at the end or is waiting: `check` adds them up.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, Literal, TypeVar

Policy = Literal["wait", "drop-oldest", "drop-newest"]
POLICIES: tuple[Policy, ...] = ("wait", "drop-oldest", "drop-newest")

T = TypeVar("T")


class Closed(Exception):
    """Nothing more will come: everything was taken, or nobody takes any more."""


class BoundedQueue(Generic[T]):
    """At most `size` items.  Items put with `always=True` (sentences, ends) are never dropped and may exceed it."""

    def __init__(self, size: int, policy: Policy = "wait") -> None:
        assert size >= 1, f"a queue of {size}"
        self.size, self.policy = size, policy
        self.put_count = self.taken_count = self.dropped_count = self.abandoned_count = 0
        self.longest = 0
        self._items: deque[tuple[T, bool]] = deque()
        self._ended = self._abandoned = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, always: bool = False) -> None:
        """Raises Closed when nobody takes any more."""
        with self._changed:
            if self.policy == "wait" and not always:
                while len(self._items) >= self.size and not self._abandoned:
                    self._changed.wait()
            if self._abandoned:
                raise Closed
            self.put_count += 1
            if len(self._items) >= self.size and not always:
                self.dropped_count += 1
                if self.policy == "drop-newest":
                    return
                if not self._drop_oldest():
                    return
            self._items.append((item, always))
            self.longest = max(self.longest, len(self._items))
            self._changed.notify_all()

    def _drop_oldest(self) -> bool:
        for i, (_, always) in enumerate(self._items):
            if not always:
                del self._items[i]
                return True
        return False

    def take(self, timeout: float | None = None) -> T:
        """The oldest item.  Raises TimeoutError when none came in time, Closed at the end, or what ended it."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._items or self._ended, timeout):
                raise TimeoutError
            if not self._items:
                if self._error is not None:
                    raise self._error
                raise Closed
            item, _ = self._items.popleft()
            self.taken_count += 1
            self._changed.notify_all()
            return item

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will be put; `error` is raised to the taker behind the last item."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def abandon(self) -> None:
        """Nothing more will be taken."""
        with self._changed:
            self._abandoned = self._ended = True
            self.abandoned_count += len(self._items)
            self._items.clear()
            self._changed.notify_all()

    def check(self) -> None:
        """Everything that came in is accounted for."""
        with self._changed:
            out = self.taken_count + self.dropped_count + self.abandoned_count + len(self._items)
            assert self.put_count == out, f"put {self.put_count}, but taken, dropped, abandoned and waiting are {out}"
