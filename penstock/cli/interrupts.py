"""Ctrl-C and SIGTERM end a phase of work cleanly: they set a flag that is looked at between steps.

A step is never cut in two, which would leave some layers of a memory ahead of others.  A second signal in the same
phase aborts.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupts:
    """Inside the `with` block signals are caught; `flagged` tells whether one came in the current phase."""

    def __init__(self) -> None:
        self.count = 0  # signals in this phase
        self.terminated = False  # SIGTERM or SIGHUP came, in any phase
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                number = getattr(signal, name, None)
                if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):  # nohup
                    continue
                self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            with contextlib.suppress(TypeError):
                signal.signal(number, handler)
        self._before = {}

    @property
    def flagged(self) -> bool:
        """Whether the phase should end."""
        return self.count > 0

    def next_phase(self) -> None:
        """What is done next has its own flag."""
        self.count = 0

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.terminated |= number != signal.SIGINT
        if self.count > 1:
            raise KeyboardInterrupt
