"""On how many threads steps run: on all, or on one.

The threads of a step wait for each other hundreds of times.  On a machine that is busy with other work each wait may
last as long as the system lets others run, and a small step takes 20 times longer on two threads than on one (measured:
600 ms and 25 ms).  Nobody can know that beforehand, so both are tried on the stream itself and the faster one is used.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch

_TRIAL = 3  # steps of a trial, after one that warms up
_HOPELESS = 1.5  # a step so much slower than the other choice ends a trial at once
_BETTER = 0.9  # how much faster the other choice must be
_SLOW = 4.0  # a step so much slower than usual starts a trial
_AGAIN = 30.0  # seconds until the next trial, if nothing happens
_PAUSE = 2.0  # seconds between two trials at least


class Threads:
    """Told the time of each step, sets the number of threads of the next.

    trial of the present choice --> trial of the other one --> the better one stands --> (later) a trial ...
    """

    def __init__(
        self,
        most: int | None = None,
        setter: Callable[[int], None] = torch.set_num_threads,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = torch.get_num_threads() if most is None else most
        self.count = self.most
        self._setter, self._clock = setter, clock
        self._stands_since: float | None = None  # None: a trial is on
        self._usual = 0.0  # seconds of a step under the choice that stands
        self._begin()

    def note(self, seconds: float) -> None:
        """A whole step took so long."""
        if self.most == 1:
            return
        if self._stands_since is None:
            self._try(seconds)
        else:
            stood = self._clock() - self._stands_since
            if stood >= _AGAIN or (stood >= _PAUSE and seconds > _SLOW * self._usual):
                self._begin()

    def restore(self) -> None:
        """All threads again."""
        self._set(self.most)

    def _begin(self) -> None:
        self._first, self._before = self.count, math.inf  # the choice tried first, and its median
        self._times: list[float] = []
        self._is_warm = self._stands_since is not None
        self._stands_since = None

    def _try(self, seconds: float) -> None:
        hopeless = seconds > _HOPELESS * self._before
        if not self._is_warm and not hopeless:
            self._is_warm = True
            return
        self._times.append(seconds)
        if len(self._times) < _TRIAL and not hopeless:
            return
        median = statistics.median(self._times)
        if self.count == self._first:
            self._before, self._times = median, []
            self._set(1 if self.count == self.most else self.most)
            return
        if median >= _BETTER * self._before:
            self._set(self._first)
        self._usual, self._stands_since = min(median, self._before), self._clock()

    def _set(self, count: int) -> None:
        if count != self.count:
            self._setter(count)
            self.count = count
        self._is_warm = False
