"""The thread that brings blocks from the disk to RAM ahead of their use."""

from __future__ import annotations

import threading
import time
from collections import deque

from penstock.memory.tiers import loads
from penstock.memory.tiers.shelf import Shelf

_REQUESTS = 256  # that may wait; the oldest are forgotten, they were guesses
_AT_ONCE = 8  # blocks reserved together


class Reader:
    """One thread per pool, started by the first request.  It does not know the pool, so that this can be collected."""

    def __init__(self, lock: threading.Condition) -> None:
        self.lock = lock
        self.thread: threading.Thread | None = None
        self._requests: deque[tuple[Shelf, list[int]]] = deque(maxlen=_REQUESTS)
        self._stopping = False

    def request(self, shelf: Shelf, blocks: list[int]) -> None:
        """Ask for blocks; under the pool's lock."""
        if self.thread is None and not self._stopping:
            self.thread = threading.Thread(target=self._run, name="penstock-reader", daemon=True)
            self.thread.start()
        self._requests.append((shelf, blocks))
        self.lock.notify_all()

    def wait(self, shelf: Shelf, blocks: list[int], deadline: float) -> None:
        """Ask for blocks and wait until they are in RAM, or gone, or it is too late; under the pool's lock."""
        self.request(shelf, blocks)
        while any(shelf.is_below(block) for block in blocks):
            left = deadline - time.monotonic()
            if left <= 0 or not self.lock.wait(left):
                return

    def stop(self) -> None:
        """End the thread; not under the lock."""
        with self.lock:
            self._stopping = True
            self._requests.clear()
            self.lock.notify_all()
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join()

    def _run(self) -> None:
        """Until stopped: reserve, read without the lock, put in place."""
        while True:
            with self.lock:
                while not self._requests and not self._stopping:
                    self.lock.wait()
                if self._stopping:
                    return
                shelf, blocks = self._requests.popleft()
                started = loads.start(shelf, blocks[:_AT_ONCE])
                if blocks[_AT_ONCE:]:
                    self._requests.appendleft((shelf, blocks[_AT_ONCE:]))
            for load in started:
                reason = loads.read(shelf, load)
                with self.lock:
                    loads.finish(shelf, load, reason)
                    self.lock.notify_all()
