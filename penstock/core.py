"""Records that every room shares: chunks, spans, budgets, clocks.  Imports nothing of ours but the errors.

Fields carry their owner in a comment: (source) is set where data enters, (session) by the session, (memory) by the
memory.  Nothing here knows about models.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any, Protocol

import numpy as np

from penstock.errors import BudgetError


class Phase(StrEnum):
    """What a step is for: retrieval may fix its choice per question, a meter may count apart."""

    INGEST = "ingest"
    ASK = "ask"
    ANSWER = "answer"


@dataclass(frozen=True)
class Chunk:
    """A piece of a stream.

    `index` counts chunks of one stream from 0; `t0` and `t1` are seconds on the session's clock.
    """

    payload: Any  # (source) str or bytes for text, Tensor for frames and samples
    kind: str = "text"  # (source)
    t0: float = 0.0  # (source)
    t1: float = 0.0  # (source)
    index: int = 0  # (source)


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a video stream."""

    image: np.ndarray  # (source) uint8 [height, width, 3], RGB
    t: float  # (source) seconds of stream time
    index: int  # (source) counts the frames of one stream from 0


@dataclass(frozen=True, slots=True)
class Span:
    """`count` new tokens of one row in a packed step; their order in the step is the order of the spans."""

    row: int
    count: int


class Kind(IntEnum):
    """What a token is: memories may route kinds apart, number them apart, hide them from each other."""

    TEXT = 0
    VISION = 1
    AUDIO = 2
    ANSWER = 3  # written by the model


_UNITS = {"B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Budget:
    """How much a memory may hold: entries per layer and key-value head, or bytes, or seconds of stream.

    Exactly one of the three is set.  Never a ratio: a stream has no length.
    """

    entries: int | None = None
    bytes: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.entries, self.bytes, self.seconds) if value is not None]
        if len(given) != 1 or given[0] <= 0:
            raise BudgetError("a budget is a positive number of entries, of bytes or of seconds: give exactly one.")

    @classmethod
    def parse(cls, text: int | str | Budget) -> Budget:
        """Read `4096`, `64MiB` or `30s`; raise BudgetError with the accepted forms."""
        if isinstance(text, Budget):
            return text
        if isinstance(text, int) and not isinstance(text, bool):
            text = str(text)
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
        if match:
            number, unit = float(match[1]), match[2].upper()
            if not unit and number.is_integer() and number > 0:
                return cls(entries=int(number))
            if unit in _UNITS and 1 <= number * _UNITS[unit] < math.inf:
                return cls(bytes=int(number * _UNITS[unit]))
            if unit == "S" and 0 < number < math.inf:
                return cls(seconds=number)
        raise BudgetError(f"cannot read the budget {text!r}: give entries (4096), bytes (64MiB) or seconds (30s).")

    def __str__(self) -> str:
        if self.entries is not None:
            return str(self.entries)
        if self.bytes is not None:
            return f"{self.bytes}B"
        return format(Decimal(repr(self.seconds)), "f") + "s"  # never an exponent: `parse` reads it back


class Clock(Protocol):
    """Time is passed in, so that every run can be repeated."""

    def now(self) -> float:
        """Seconds since an arbitrary start; never goes back."""

    def sleep(self, seconds: float) -> None:
        """Wait, or pretend to."""


class RealClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))


@dataclass
class SimulatedClock:
    """A clock that moves only when told to: for tests and for files played as fast as possible."""

    time: float = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += max(0.0, seconds)


def parse_size(text: str | int) -> int:
    """Bytes from `512`, `10MB`, `64MiB`; raises BudgetError."""
    if isinstance(text, int):
        return text
    budget = Budget.parse(text)
    size = budget.bytes if budget.bytes is not None else budget.entries
    if size is None:
        raise BudgetError(f"cannot read the size {text!r}: give bytes (65536) or a unit (64MiB).")
    return size
