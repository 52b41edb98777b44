"""When steps happen: called for, or in a thread of their own; and how others wait for them."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from penstock.core import Clock
from penstock.engine.records import Stepped
from penstock.engine.step import fail, one_step
from penstock.errors import MemoryStateError

if TYPE_CHECKING:
    from penstock.engine.engine import Engine
    from penstock.engine.session import EngineSession


class Running(ABC):
    """The locks of an engine and its loop."""

    clock: Clock
    busy: dict[str, EngineSession]  # those that may have work

    def __init__(self) -> None:
        self.lock = threading.RLock()  # queues and counters; never held while the model runs
        self._gate = threading.RLock()  # rows: held by a step, and by whoever changes a session between steps
        self._knocking = 0
        self._news = threading.Condition()  # something was queued, or a step has ended
        self._thread: threading.Thread | None = None
        self._stop = False

    @property
    @abstractmethod
    def _engine(self) -> Engine:
        """The engine that these are the locks of."""

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Inside, no step runs and no other caller changes rows."""
        with self.lock:
            self._knocking += 1
        try:
            self._gate.acquire()
        finally:
            with self.lock:
                self._knocking -= 1
        try:
            yield
        finally:
            self._gate.release()

    def step(self) -> Stepped:
        """One step for all that have something to do; falsy when there was nothing."""
        with self.between_steps():
            stepped = one_step(self._engine)
        with self._news:
            self._news.notify_all()
        return stepped

    @property
    def is_running(self) -> bool:
        return self._thread is not None

    def run(self) -> Engine:
        """Step in a thread until `stop`."""
        with self.lock:
            if self._thread is None:
                self._stop = False
                self._thread = threading.Thread(target=self._loop, name="penstock-engine", daemon=True)
                self._thread.start()
        return self._engine

    def _loop(self) -> None:
        while not self._stop:
            try:
                is_done = bool(self.step())
            except Exception as error:  # ours: nobody may wait for ever for answers that cannot come
                with self.between_steps(), self.lock:
                    for session in list(self.busy.values()):
                        fail(self._engine, session, error, self.clock.now())
                time.sleep(0.01)  # not again at once
                continue
            if is_done:
                while self._knocking and not self._stop:
                    time.sleep(1e-4)  # locks are not fair: let others in
                continue
            with self._news:
                if not self._stop:
                    self._news.wait(0.001 if self.busy else None)

    def stop(self) -> None:
        """Stop the thread behind the step under way; what is queued stays queued."""
        with self._news:
            self._stop = True
            self._news.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait_until(self, is_true: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait, or step, until something is true; False when `timeout` seconds of real time are over."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            with self.lock:  # never in the middle of a change
                if is_true():
                    return True
            if end is not None and time.monotonic() >= end:
                return False
            if self.is_running:
                with self._news:
                    self._news.wait(0.05)
            elif not self.step() and not is_true():
                raise MemoryStateError("the engine has work that it cannot do: its rows are all in mid-answer.")

    def drain(self, timeout: float | None = None) -> bool:
        """Wait (or step) until nothing is queued and no answer is open; False when time is over."""
        return self.wait_until(lambda: not any(s.has_work for s in list(self.busy.values())), timeout)
