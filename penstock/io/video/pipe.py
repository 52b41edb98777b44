"""Standard input and named pipes for PyAV: bytes as they arrive, and an end as soon as nobody wants them."""

from __future__ import annotations

import os
import select
import threading

_WAIT = 0.1  # seconds between two looks at whether it was closed


class Pipe:
    """A file object that PyAV reads.  No lock of the interpreter is held while it waits, so that a program can end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._closed = threading.Event()

    def read(self, size: int) -> bytes:
        """At most `size` bytes, at least one unless this is the end."""
        while not self._closed.is_set():
            try:
                if os.name == "nt" or select.select([self._descriptor], [], [], _WAIT)[0]:
                    return os.read(self._descriptor, size)
            except BlockingIOError:
                continue
            except OSError:
                return b""
        return b""

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self._closed.set()
