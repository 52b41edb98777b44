"""A watched stream for the console: how it stands, what was said, its newest picture, and questions that people type.

The thread that watches puts, those of the server take.  Everything is bounded: the newest picture only, encoded when a
page asks for it and at most `RATE` times a second, and the newest events.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from penstock.errors import Overloaded
from penstock.serve.png import png

RATE = 4.0  # pictures encoded per second at most
EVENTS = 500  # newest that a page can ask for
QUESTIONS = 16  # that may wait


class Put(Protocol):
    """A question that was put: pieces of the answer as they come, an event when it has ended."""

    @property
    def pieces(self) -> Sequence[str]: ...

    @property
    def event(self) -> Any: ...

    def cancel(self) -> None: ...


class Watched:
    """`ask(text, interrupts)` hands a question to the watcher."""

    def __init__(self, name: str, model: str, ask: Callable[[str, bool], Put]) -> None:
        self.name, self.model, self._ask = name, model, ask
        self.pictures = 0  # encoded
        self._facts: dict[str, Any] = {}
        self._image: tuple[int, np.ndarray] | None = None
        self._file: tuple[int, bytes] | None = None
        self._encoded_at = float("-inf")
        self._events: deque[tuple[int, dict[str, Any]]] = deque(maxlen=EVENTS)
        self._count = 0
        self._waiting: list[Put] = []
        self._lock = threading.Lock()  # of the picture's encoding

    # -- from the watcher's thread ------------------------------------------------------------------------------

    def show(self, facts: Mapping[str, Any], frame: tuple[int, np.ndarray] | None) -> None:
        """How things stand; `frame`: the newest one that was read, with its number."""
        self._facts, self._image = dict(facts), frame

    def event(self, document: Mapping[str, Any]) -> None:
        """Something happened."""
        self._count += 1
        self._events.append((self._count, dict(document)))

    # -- from the server ----------------------------------------------------------------------------------------

    def session(self) -> dict[str, Any]:
        """The stream as the console lists sessions."""
        facts = {"tokens": 0, "tokens_ingested": 0, "memory_bytes": 0, "lag_ms": 0.0, "answering": 0} | self._facts
        fixed = {"id": self.name, "kind": "video", "place": "device", "durable": False, "bytes": 0, "bytes_pending": 0}
        return fixed | facts

    def news(self, after: int) -> dict[str, Any]:
        """Events behind number `after`, and the number of the newest picture."""
        events = [{"number": number, **document} for number, document in list(self._events) if number > after]
        image = self._image
        return {"events": events, "frame": None if image is None else image[0], "speaking": self._facts.get("speaking")}

    def picture(self) -> tuple[int, bytes] | None:
        """The newest picture as PNG, with its number; the last one again while it is too early for another."""
        with self._lock:
            image, now = self._image, time.monotonic()
            stale = self._file is None or (image is not None and image[0] != self._file[0])
            if image is not None and stale and now - self._encoded_at >= 1 / RATE:
                self._file, self._encoded_at = (image[0], png(image[1])), now
                self.pictures += 1
            return self._file

    def ask(self, text: str, interrupts: bool) -> Put:
        """Hand a question to the watcher; Overloaded when too many wait."""
        self._waiting = [put for put in self._waiting if put.event is None]
        if len(self._waiting) >= QUESTIONS:
            raise Overloaded(f"{QUESTIONS} questions wait for their answers: ask again when some have come.")
        self._waiting.append(self._ask(text, interrupts))
        return self._waiting[-1]
