"""What a watcher counts, and where it stops."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counts:
    """What was seen and said so far."""

    frames: int = 0  # read into the memory
    tokens_kept: int = 0  # visual tokens read, each once
    tokens_dropped: int = 0  # visual tokens left out by reducers
    answers: int = 0
    announcements: int = 0
    errors: int = 0
    dropped: int = 0  # frames of which a `dropped` event was told
    lag_ms: float = 0.0  # of the newest frame
    worst_lag_ms: float = 0.0
    busy: float = 0.0  # seconds spent reading, answering and looking
    peak_bytes: int = 0


@dataclass(frozen=True)
class Limits:
    """Where to stop."""

    frames: int | None = None
    seconds: float | None = None  # of stream time
    max_new: int = 64
    speech: float | None = None  # tokens of an answer per second of the video's clock; None: it takes no time
    apart: bool = False  # answers come from a snapshot and do not enter the stream
    as_left: bool = False  # a question does not bring back what reducers left out of the newest frame
