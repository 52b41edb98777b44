"""How does a contestant answer? One JSON request per line on stdin, one JSON reply per line on stdout.

Every contestant, ours included, runs as a process of its own: thread pools, allocators and compiled code of one never
disturb another, resident sets are told apart, and a peer may live in another Python environment. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.shapes import SHAPES, Shape


class Skip(Exception):
    """This contestant cannot run here; the message says why."""


@dataclass(frozen=True)
class Setup:
    """What a contestant is asked to be."""

    shape: Shape
    dtype: str
    threads: int
    scratch: Path  # a folder for files that outlive a run, such as GGUF models
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """One visit: seconds of each step, and the share of a rarer event that every step has to carry."""

    seconds: list[float]
    amortised: float = 0.0


class Peer(ABC):
    """One way of running a stream. Calls come in the order setup, check, then seek, decode, ingest in any order."""

    @abstractmethod
    def setup(self, setup: Setup) -> None:
        """Build the model and be ready to measure (compiled, if it compiles)."""

    @abstractmethod
    def check(self, tokens: list[int]) -> list[float]:
        """Read the tokens one by one from a fresh state and return the last logits."""

    @abstractmethod
    def seek(self, position: int) -> None:
        """Be in the state that has read `position` tokens."""

    @abstractmethod
    def decode(self, steps: int, phase: float) -> Timing:
        """Take single steps, token in, logits out. A cyclic method puts itself at `phase` (0 to 1) of its cycle."""

    def ingest(self, chunk: int, count: int) -> Timing:
        """Read `count` chunks of `chunk` tokens with the logits of the last token; seconds per chunk."""
        raise Skip("offers no reading in chunks")

    @abstractmethod
    def memory_bytes(self) -> int:
        """Bytes of keys, values and side tables that are held now."""

    def describe(self) -> dict[str, Any]:
        """Versions and settings, for the record."""
        return {}


def timed(call: Callable[[Any], object], argument: object) -> float:
    """Seconds that one call takes, its argument made beforehand."""
    start = time.perf_counter()
    call(argument)
    return time.perf_counter() - start


def resident_bytes() -> int:
    """The resident set of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _answer(peer: Peer, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
    match operation:
        case "setup":
            shape = SHAPES[arguments["shape"]]
            scratch = Path(arguments["scratch"])
            scratch.mkdir(parents=True, exist_ok=True)
            peer.setup(Setup(shape, arguments["dtype"], arguments["threads"], scratch, arguments["options"]))
            return {"describe": peer.describe()}
        case "check":
            return {"logits": peer.check(arguments["tokens"])}
        case "seek":
            peer.seek(arguments["position"])
            return {}
        case "decode":
            return asdict(peer.decode(arguments["steps"], arguments["phase"]))
        case "ingest":
            return asdict(peer.ingest(arguments["chunk"], arguments["count"]))
        case "memory":
            return {"memory_bytes": peer.memory_bytes(), "rss_bytes": resident_bytes()}
        case _:
            raise ValueError(f"unknown operation {operation!r}")


def serve(peer: Peer) -> None:
    """Answer requests until stdin closes. What libraries print goes to stderr, stdout carries replies only."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = _answer(peer, request.pop("operation"), request)
        except Skip as reason:
            reply = {"skip": str(reason)}
        except Exception as error:  # the parent reports it and goes on with the others
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
