"""The loop of a watcher: frames in, answers out, in the order of stream time.

What happens at second t, in this order: captions and questions of earlier seconds; the frame of t is read; standing
requests are looked at.  So a question of second q has every frame up to q and none behind it.

While an answer is spoken (answers.py), frames and captions go on entering between its tokens, and standing requests are
looked at behind the first frame after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import InitVar, dataclass, field

from penstock.core import Frame
from penstock.errors import PenstockError
from penstock.io.captions import Caption
from penstock.io.frames import Notice
from penstock.triggers import Debounce, Monitor
from penstock.watch.answers import Answers
from penstock.watch.counts import Limits
from penstock.watch.events import Event, Record
from penstock.watch.eyes import Eyes, Reader
from penstock.watch.pipeline import Pipeline, Seen
from penstock.watch.questions import Agenda
from penstock.watch.speaking import Requests, worded
from penstock.watch.voice import Asked, Voice

STALL = 10.0  # seconds of silence after which a source is said to stall


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
    emit: InitVar[Callable[[Event], None]] = lambda event: None  # told every event
    stopped: Callable[[], bool] = lambda: False  # whether somebody wants it to end; asked from the beginning on
    note: Callable[[float], None] = lambda seconds: None  # told how long the reading of each unit took
    monitor: Monitor | None = None  # may stop an answer
    debounce: Debounce | None = None
    lingers: bool = False  # behind the end of the source questions can still be asked, until `stopped`

    def __post_init__(self, emit: Callable[[Event], None]) -> None:
        self.record = Record(emit)
        self.counts = self.record.counts
        self.voice = Voice(
            self.reader, self.pipeline, max_new=self.limits.max_new, speech=self.limits.speech, monitor=self.monitor,
            debounce=self.debounce, apart=self.limits.apart,
        )  # fmt: skip
        self.answers = Answers(self.reader, self.eyes, self.voice, self.record, self.limits, self.stopped)
        self.newest: Frame | None = None  # the newest frame that was read
        self._change = 0.0  # of frames behind which no request was looked at
        self.ended: str | None = None  # source, limit, interrupted
        self.waits = False
        self._caption = 0
        self._quiet_since: float | None = None
        self._began = time.perf_counter()
        self._stopped_at: float | None = None

    @property
    def t(self) -> float:
        """Stream time."""
        return self.record.t

    @property
    def wall(self) -> float:
        """Seconds since the beginning."""
        return (self._stopped_at or time.perf_counter()) - self._began

    @property
    def fps(self) -> float:
        """Frames read per second of wall time."""
        return self.counts.frames / self.wall if self.wall > 0 else 0.0

    def ask(self, text: str, interrupts: bool = False) -> Asked:
        """Ask now; from any thread.  It waits for its turn; with `interrupts` it ends the answer under way."""
        return self.answers.put(text, interrupts)

    def run(self) -> Iterator[None]:
        """Watch to the end; yields after every frame, and a few times per second while nothing comes."""
        self._began, silent = time.perf_counter(), 0.0
        speaks_on = lambda: self.voice.is_speaking and self.pipeline.is_timed  # noqa: E731
        items = self.pipeline.items(patience=lambda: 0.0 if speaks_on() else 0.2)
        try:
            for item in items:
                if self.stopped():
                    self.ended = "interrupted"
                    break
                self.answers.attend()
                if item is None and speaks_on():
                    self.answers.say()
                elif item is None:
                    before, silent = silent, silent + 0.2
                    if before < STALL <= silent:
                        self.record.error(f"{self.pipeline.source.name} stalls: no frame for {STALL:.0f} s.")
                    self.waits = True
                    if self.pipeline.now is not None and not self.pipeline.lag:  # time goes on without frames
                        self._until(self.pipeline.now)
                elif isinstance(item, Notice):
                    silent = 0.0 if item.kind != "reconnecting" else silent
                    self.record.error(item.text, facts={"trouble": item.kind})
                else:
                    silent, self.waits = 0.0, False
                    if self._is_past(item.t):
                        self.ended = "limit"
                        break
                    self._until(item.t)
                    if isinstance(item, Seen):
                        self._see(item)
                    else:
                        self.answers.skip()
                self._tell_drops()
                yield
            self.ended = self.ended or "source"
            self._finish()
            self._tell_drops()
            while self.lingers and self.ended == "source" and not self.stopped():
                self.answers.attend()
                self.answers.settle()
                yield
                time.sleep(0.05)
        finally:
            items.close()  # type: ignore[attr-defined]
            self._stopped_at = time.perf_counter()

    def _is_past(self, t: float) -> bool:
        full = self.limits.frames is not None and self.counts.frames >= self.limits.frames
        return full or (self.limits.seconds is not None and t >= self.limits.seconds - 1e-9)

    # -- one moment -------------------------------------------------------------------------------------------------

    def _until(self, t: float) -> None:
        """Everything that belongs before a frame of second t."""
        self.answers.go_on(t)
        while not self.voice.is_speaking and (question := self.agenda.due(t)) is not None:
            self._hear(min(question.at, t))
            self.answers.begin(question, max(question.at, self.t))
            self.answers.go_on(t)
        self._hear(t)

    def _hear(self, t: float) -> None:
        """Captions that begin before t."""
        while self._caption < len(self.captions) and self.captions[self._caption].t0 < t:
            caption = self.captions[self._caption]
            self._caption += 1
            with self.voice.live.letting_in():
                self.reader.feed(worded(self.reader, f"{caption.text}\n"))

    def _see(self, seen: Seen) -> None:
        began = time.perf_counter()
        self.record.t = max(self.t, seen.t)
        counts = self.counts
        spoken = self.voice.now
        try:
            with self.voice.live.letting_in():
                self.reader.flush()
                if spoken is None:
                    self.requests.stand()
                at = self.reader.tokens
                reading = time.perf_counter()
                entered = self.eyes.read(seen.visual, seen.reduced)
                self.note(time.perf_counter() - reading)
        except PenstockError as error:
            self.record.error(str(error))
            return
        self.answers.see(seen, at if entered else None)
        self.newest = seen.frames[-1]
        counts.frames += len(seen.frames)
        counts.tokens_kept += len(seen.reduced.index)
        counts.tokens_dropped += seen.visual.tokens.shape[0] - len(seen.reduced.index)
        counts.peak_bytes = max(counts.peak_bytes, self.reader.memory.nbytes)
        self._change = max(self._change, seen.reduced.change)
        if spoken is not None:
            spoken.frames += len(seen.frames)
        elif entered:
            change, self._change = self._change, 0.0
            self._look(seen.t, change)
        if self.pipeline.now is not None:
            counts.lag_ms = max(0.0, 1000 * (self.pipeline.now - seen.t))
            counts.worst_lag_ms = max(counts.worst_lag_ms, counts.lag_ms)
        counts.busy += time.perf_counter() - began

    def _look(self, t: float, change: float) -> None:
        try:
            said = self.requests.look(t, change)
        except PenstockError as error:
            self.record.error(str(error))
            return
        for item in said:
            self._end_silence()
            self.counts.announcements += 1
            facts: dict[str, object] = {"cut": "monitor"} if item.cut else {}
            self.record.tell("announcement", item.text, item.request, facts)
        if not said and self.requests.requests and self._quiet_since is None:
            self._quiet_since = self.t

    def _end_silence(self) -> None:
        if self._quiet_since is not None:
            text = f"nothing to say from {self._quiet_since:.1f} s to {self.t:.1f} s"
            self.record.tell("silence", text, facts={"since": round(self._quiet_since, 3)})
            self._quiet_since = None

    def _finish(self) -> None:
        """The stream is over."""
        if self.ended == "limit" and self.limits.seconds is not None:
            self._until(self.limits.seconds)
        self.answers.finish(self.agenda, interrupted=self.ended == "interrupted")
        self._end_silence()

    def _tell_drops(self) -> None:
        total = self.pipeline.frames_dropped
        fresh = total - self.counts.dropped
        if fresh >= max(1, self.counts.dropped // 4) or (fresh and self.ended):
            self.counts.dropped = total
            text = f"{fresh} frame{'s' if fresh > 1 else ''} dropped: the model is slower than the source"
            self.record.tell("dropped", text, facts={"frames": fresh, "frames_dropped": total})
