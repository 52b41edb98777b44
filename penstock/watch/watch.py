"""The loop of a watcher: frames in, answers out, in the order of stream time.

What happens at second t, in this order: captions and questions of earlier seconds; the frame of t is read; standing
requests are looked at.  So a question of second q has every frame up to q and none behind it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from penstock.errors import PenstockError
from penstock.io.captions import Caption
from penstock.io.frames import Notice
from penstock.watch.events import Event
from penstock.watch.eyes import Eyes, Reader
from penstock.watch.pipeline import Pipeline, Seen
from penstock.watch.questions import Agenda, Question, about
from penstock.watch.spans import Seconds, View
from penstock.watch.speaking import Requests, worded

STALL = 10.0  # seconds of silence after which a source is said to stall


@dataclass
class Counts:
    """What was seen and said so far."""

    frames: int = 0  # read into the memory
    tokens_kept: int = 0  # visual tokens read
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


@dataclass
class Watch:
    """One watcher; make it, then iterate over `run` to its end."""

    pipeline: Pipeline
    eyes: Eyes
    reader: Reader
    requests: Requests
    agenda: Agenda = field(default_factory=Agenda)
    captions: Sequence[Caption] = ()
    limits: Limits = field(default_factory=Limits)
    emit: Callable[[Event], None] = lambda event: None
    stopped: Callable[[], bool] = lambda: False  # whether somebody wants it to end
    note: Callable[[float], None] = lambda seconds: None  # told how long the reading of each unit took

    def __post_init__(self) -> None:
        self.counts, self.seconds = Counts(), Seconds()
        self.t = 0.0  # stream time
        self.ended: str | None = None  # source, limit, interrupted
        self.waits = False
        self._caption = 0
        self._quiet_since: float | None = None
        self._began = time.perf_counter()
        self._stopped_at: float | None = None

    @property
    def wall(self) -> float:
        """Seconds since the beginning."""
        return (self._stopped_at or time.perf_counter()) - self._began

    @property
    def fps(self) -> float:
        """Frames read per second of wall time."""
        return self.counts.frames / self.wall if self.wall > 0 else 0.0

    def run(self) -> Iterator[None]:
        """Watch to the end; yields after every frame, and a few times per second while nothing comes."""
        self._began, silent = time.perf_counter(), 0.0
        items = self.pipeline.items(patience=0.2)
        try:
            for item in items:
                if self.stopped():
                    self.ended = "interrupted"
                    break
                if item is None:
                    before, silent = silent, silent + 0.2
                    if before < STALL <= silent:
                        self._error(f"{self.pipeline.source.name} stalls: no frame for {STALL:.0f} s.")
                    self.waits = True
                    if self.pipeline.now is not None and not self.pipeline.lag:  # time goes on without frames
                        self._until(self.pipeline.now)
                elif isinstance(item, Notice):
                    silent = 0.0 if item.kind != "reconnecting" else silent
                    self._error(item.text, {"trouble": item.kind})
                else:
                    silent, self.waits = 0.0, False
                    if self._is_past(item.t):
                        self.ended = "limit"
                        break
                    self._until(item.t)
                    if isinstance(item, Seen):
                        self._see(item)
                self._tell_drops()
                yield
            self.ended = self.ended or "source"
            self._finish()
            self._tell_drops()
        finally:
            items.close()  # type: ignore[attr-defined]
            self._stopped_at = time.perf_counter()

    def _is_past(self, t: float) -> bool:
        full = self.limits.frames is not None and self.counts.frames >= self.limits.frames
        return full or (self.limits.seconds is not None and t >= self.limits.seconds - 1e-9)

    # -- one moment -------------------------------------------------------------------------------------------------

    def _until(self, t: float) -> None:
        """Everything that belongs before a frame of second t."""
        while (question := self.agenda.due(t)) is not None:
            self._hear(min(question.at, t))
            self._ask(question, max(question.at, self.t))
        self._hear(t)

    def _hear(self, t: float) -> None:
        """Captions that begin before t."""
        while self._caption < len(self.captions) and self.captions[self._caption].t0 < t:
            caption = self.captions[self._caption]
            self._caption += 1
            self.reader.feed(worded(self.reader, f"{caption.text}\n"))

    def _see(self, seen: Seen) -> None:
        began = time.perf_counter()
        self.t = max(self.t, seen.t)
        counts = self.counts
        try:
            self.reader.flush()
            self.requests.stand()
            at = self.reader.tokens
            reading = time.perf_counter()
            entered = self.eyes.read(seen.visual, seen.reduced)
            self.note(time.perf_counter() - reading)
        except PenstockError as error:
            self._error(str(error))
            return
        self.seconds.note(seen.t, at)
        counts.frames += len(seen.frames)
        counts.tokens_kept += len(seen.reduced.index)
        counts.tokens_dropped += seen.visual.tokens.shape[0] - len(seen.reduced.index)
        counts.peak_bytes = max(counts.peak_bytes, self.reader.memory.nbytes)
        if entered:
            self._look(seen)
        if self.pipeline.now is not None:
            counts.lag_ms = max(0.0, 1000 * (self.pipeline.now - seen.t))
            counts.worst_lag_ms = max(counts.worst_lag_ms, counts.lag_ms)
        counts.busy += time.perf_counter() - began

    def _look(self, seen: Seen) -> None:
        try:
            said = self.requests.look(seen.t, seen.reduced.change)
        except PenstockError as error:
            self._error(str(error))
            return
        for item in said:
            self._end_silence()
            self.counts.announcements += 1
            self.emit(Event(self.t, "announcement", item.text, item.request))
        if not said and self.requests.requests and self._quiet_since is None:
            self._quiet_since = self.t

    def _end_silence(self) -> None:
        if self._quiet_since is not None:
            text = f"nothing to say from {self._quiet_since:.1f} s to {self.t:.1f} s"
            self.emit(Event(self.t, "silence", text, None, {"since": round(self._quiet_since, 3)}))
            self._quiet_since = None

    # -- answers ----------------------------------------------------------------------------------------------------

    def _ask(self, question: Question, t: float) -> None:
        began = time.perf_counter()
        named = about(question.text)
        refusal = self.seconds.refusal(named if named is not None else self.seconds.last or 0.0, self._views())
        facts: dict[str, object] = {"asked": None if math.isinf(question.at) else question.at}
        if refusal is not None:
            self._answer(t, refusal, question, {**facts, "refused": True})
            return
        first, text = None, ""
        try:
            for piece in self.reader.reply(worded(self.reader, question.text), max_new=self.limits.max_new):
                first = time.perf_counter() - began if first is None else first
                text += piece
        except PenstockError as error:
            self._error(str(error), {"question": question.text})
            return
        took = time.perf_counter() - began
        facts |= {"first_ms": None if first is None else round(1000 * first, 1), "ms": round(1000 * took, 1)}
        self.counts.busy += took
        self._answer(t, text.strip(), question, facts)

    def _views(self) -> Sequence[View]:
        views: Sequence[View] = self.reader.memory.view()
        return views

    def _answer(self, t: float, text: str, question: Question, facts: dict[str, object]) -> None:
        self.counts.answers += 1
        self.emit(Event(t, "answer", text, question.text, facts))

    def _finish(self) -> None:
        """The stream is over: what was to be asked at its end, and what it never reached."""
        if self.ended == "limit" and self.limits.seconds is not None:
            self._until(self.limits.seconds)
        while (question := self.agenda.rest()) is not None:
            if self.ended == "interrupted":
                self._answer(self.t, f"not asked: interrupted at {self.t:.1f} s.", question, {"refused": True})
            elif question.at > self.t and not math.isinf(question.at):
                text = f"not seen: the stream ended at {self.t:.1f} s, before {question.at:.1f} s."
                self._answer(self.t, text, question, {"asked": question.at, "refused": True})
            else:
                self._ask(question, self.t)
        self._end_silence()

    # -- trouble ----------------------------------------------------------------------------------------------------

    def _error(self, text: str, facts: dict[str, object] | None = None) -> None:
        self.counts.errors += 1
        facts = dict(facts or {})
        question = facts.pop("question", None)
        self.emit(Event(self.t, "error", text, question if isinstance(question, str) else None, facts))

    def _tell_drops(self) -> None:
        total = self.pipeline.frames_dropped
        fresh = total - self.counts.dropped
        if fresh >= max(1, self.counts.dropped // 4) or (fresh and self.ended):
            self.counts.dropped = total
            text = f"{fresh} frame{'s' if fresh > 1 else ''} dropped: the model is slower than the source"
            self.emit(Event(self.t, "dropped", text, None, {"frames": fresh, "frames_dropped": total}))
