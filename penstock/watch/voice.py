"""One answer at a time, spoken between frames (penstock/live).

What enters between two tokens is defined by time: on the clock of the machine what has come, while it has its share; on
the clock of the video, where an answer takes `1/speech` seconds a token, every frame of the time until then.  Without
`speech` an answer takes no time of the video.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from penstock.live import Live
from penstock.triggers import Debounce, Monitor
from penstock.watch.events import Event
from penstock.watch.eyes import Reader
from penstock.watch.pipeline import Pipeline
from penstock.watch.questions import Question


@dataclass
class Asked:
    """A question that somebody put while it was watched; filled in from the watcher's thread."""

    text: str
    interrupts: bool = False  # ends the answer under way (barge-in)
    is_cancelled: bool = False
    pieces: list[str] = field(default_factory=list)
    event: Event | None = None  # once it is answered

    def cancel(self) -> None:
        """End its answer behind what was delivered."""
        self.is_cancelled = True


@dataclass
class Spoken:
    """An answer and how it came about."""

    question: Question
    t: float  # second of the stream at which it was asked
    asked: Asked | None
    began: float = field(default_factory=time.perf_counter)
    first: float | None = None  # seconds until its first piece
    text: str = ""
    steps: int = 0
    frames: int = 0  # read while it was spoken
    why: str = ""  # finished, full, interrupted, monitor; "" while it is spoken

    def facts(self) -> dict[str, Any]:
        """What goes beside the text in an event."""
        took = time.perf_counter() - self.began
        facts: dict[str, Any] = {"first_ms": None if self.first is None else round(1000 * self.first, 1)}
        facts["ms"] = round(1000 * took, 1)
        if self.frames:
            facts["frames_while_speaking"] = self.frames
        if self.why in ("interrupted", "monitor"):
            facts["cut"] = self.why
        return facts


class Voice:
    """Asks and lets speak; `speech`: tokens per second of the video's clock.

    `apart`: an answer is spoken from a snapshot of what had been seen when it was asked (Dispider's reaction,
    arXiv:2501.03218).  Nothing that is seen meanwhile changes it, and neither question nor answer enters the stream.
    """

    def __init__(
        self, reader: Reader, pipeline: Pipeline, *, max_new: int, speech: float | None = None,
        monitor: Monitor | None = None, debounce: Debounce | None = None, apart: bool = False,
    ) -> None:  # fmt: skip
        session: Any = reader
        self._session = session
        self._settings: dict[str, Any] = {"clock": pipeline.clock, "monitor": monitor, "debounce": debounce}
        self.live = Live(self._session, **self._settings)  # what comes in enters through it
        self.speaker = self.live  # where the answer is spoken
        self.apart = apart
        self.pipeline, self.max_new, self.speech = pipeline, max_new, speech
        self.now: Spoken | None = None

    @property
    def is_speaking(self) -> bool:
        return self.now is not None

    def begin(
        self, question: Question, words: str, t: float, asked: Asked | None, look: Callable[[Any], None] | None = None
    ) -> Spoken | None:
        """Put the question; the answer's first piece.  Returns it when it has ended.

        `look` is called before with the session where the answer is spoken: what is in view may enter there once more.
        """
        assert self.now is None, "an answer is under way"
        self.now = Spoken(question, t, asked)
        if self.apart:
            self._session.flush()
            self.speaker = Live(self._session.fork(), **self._settings)
        if look is not None:
            look(self.speaker.session)
        self.speaker.ask(words, max_new=self.max_new)
        return self.go_on()

    def admits(self, t: float) -> bool:
        """Whether a frame of second t enters before the next token."""
        if self.now is None:
            return True
        if self.pipeline.is_timed:
            return self.speaker.perceives(self.pipeline.filled)
        return (
            self.speech is not None and self.speaker.lets_in and t <= self.now.t + self.now.steps / self.speech + 1e-9
        )

    def go_on(self) -> Spoken | None:
        """One more token; the answer, when that was its end."""
        spoken = self.now
        assert spoken is not None
        spoken.steps += 1
        try:
            events = self.speaker.step()
        except BaseException:
            self._end()
            raise
        for event in events:
            if event.kind == "piece":
                spoken.first = time.perf_counter() - spoken.began if spoken.first is None else spoken.first
                spoken.text += event.text
                if spoken.asked is not None:
                    spoken.asked.pieces.append(event.text)
            elif event.kind in ("end", "cut"):
                spoken.why = event.facts["why"]
                self._end()
                return spoken
        return None

    def _end(self) -> None:
        self.now = None
        if self.speaker is not self.live:
            self.speaker.session.runner.close()
            self.speaker = self.live

    def cut(self) -> Spoken:
        """End the answer behind what was delivered."""
        assert self.now is not None
        self.speaker.interrupt()
        ended = self.go_on()
        assert ended is not None, "an interruption ends an answer"
        return ended
