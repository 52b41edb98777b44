"""What waits to be let in: pictures and text in the order in which they came, within a bound."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from penstock.errors import Overloaded, UsageError


class Inbox:
    """At most `waiting` inputs.  When it is full the oldest picture leaves; text is never dropped, but refused.

    Safe to use from several threads; the order is that in which `put` was called.
    """

    def __init__(self, waiting: int = 256) -> None:
        if waiting < 1:
            raise UsageError(f"an inbox of {waiting} inputs can hold nothing: give at least 1.")
        self.most = waiting
        self.dropped = 0
        self._items: deque[Any] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Any) -> Any:
        """Take an input; returns the picture that left in its place, or None.

        Raises:
            Overloaded: only text waits, and as much of it as may.
        """
        with self._lock:
            gone = None
            if len(self._items) >= self.most:
                at = next((i for i, old in enumerate(self._items) if not isinstance(old, str)), None)
                if at is None:
                    raise Overloaded(f"{self.most} pieces of text wait to be read: put more when some have been read.")
                gone = self._items[at]
                del self._items[at]
                self.dropped += 1
            self._items.append(item)
            return gone

    def take(self) -> Any:
        """The oldest input; None if nothing waits."""
        with self._lock:
            return self._items.popleft() if self._items else None
