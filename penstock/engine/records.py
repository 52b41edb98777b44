"""What the engine tells: plain values, no behaviour.  Bytes are real, milliseconds are those of the engine's clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Place(StrEnum):
    """Where a session's memory is."""

    NEW = "new"  # nothing read yet
    DEVICE = "device"  # in a row
    RAM = "ram"
    DISK = "disk"


class Finish(StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # the model ended it, or a stop string was met
    LENGTH = "length"  # max_new tokens
    CANCELLED = "cancelled"  # by its reader, or because its session was closed
    DEADLINE = "deadline"  # its time was over
    ERROR = "error"  # a step failed; the iterator raises the error


@dataclass(frozen=True)
class Appended:
    """What became of one append.  `bytes` and `tokens` are this call's; the others are the session's afterwards."""

    bytes: int  # accepted
    tokens: int  # that became settled by it; text whose tokens may still change settles later
    bytes_pending: int
    lag_ms: float
    wait: bool  # over its lag budget: a polite writer waits (`session.drained`) before it appends more
    bytes_dropped: int  # by the lag policy, in this call


@dataclass(frozen=True)
class Pace:
    """How answers came, of the newest ones; milliseconds of the engine's clock."""

    first_ms: dict[str, float] = field(default_factory=dict)  # p50, p99: from ask to the first piece of text
    between_ms: dict[str, float] = field(default_factory=dict)  # p50, p99: between pieces of one answer
    stalls: int = 0  # pieces that came more than a second after the one before
    deadlines_met: int = 0
    deadlines_missed: int = 0


@dataclass(frozen=True)
class Status:
    """A session at one moment."""

    id: str
    tokens: int  # of its stream: in the memory or queued in front of it
    tokens_ingested: int  # in the memory
    bytes_pending: int  # accepted and not yet in the memory, held-back text included
    memory_bytes: int  # of its row, or of its copy in RAM or on disk
    lag_ms: float  # age of the oldest input that is not in the memory; 0 when there is none
    loss: float | None  # nats per token of the newest step, where the engine measures
    place: Place
    answering: int = 0  # answers under way or queued
    seconds: float = 0.0  # of the model's time: its share, by tokens, of each step since it was opened
    counters: dict[str, int] = field(default_factory=dict)  # bytes_dropped, refused, coarsened, late, answers, ...
    pace: Pace = Pace()  # of its answers


@dataclass(frozen=True)
class Stepped:
    """What one step did: ids of sessions by what happened to them.  Falsy when there was nothing to do."""

    ingested: dict[str, int] = field(default_factory=dict)  # tokens read: stream and questions
    decoded: dict[str, int] = field(default_factory=dict)  # tokens let in as part of answers
    finished: dict[str, Finish] = field(default_factory=dict)
    served: tuple[str, ...] = ()  # those that went on, also without a token: to begin or to end an answer
    promoted: tuple[str, ...] = ()  # brought into a row
    demoted: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()  # had work and were not served
    seconds: float = 0.0  # wall time of the model's call

    @property
    def tokens(self) -> int:
        return sum(self.ingested.values()) + sum(self.decoded.values())

    def __bool__(self) -> bool:
        return bool(self.served or self.demoted)


@dataclass(frozen=True)
class EngineStats:
    """The engine at one moment.  Counters count from its start."""

    sessions: int
    rows: int
    rows_used: int
    device_bytes: int  # of the shared memory, all rows
    ram_bytes: int  # of sessions demoted to RAM
    disk_bytes: int
    steps: int
    tokens_ingested: int
    tokens_decoded: int
    bytes_pending: int
    promotions: int
    demotions: int
    answers: dict[str, int]  # by Finish
    pace: Pace  # of all answers
    stuck: int  # sessions with work that no step has served for `patience` seconds
    still: float  # seconds in which there was work and no step has ended; 0 when there is none
    path: str
