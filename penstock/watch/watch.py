"""The loop of a watcher: frames in, answers out, in the order of stream time.

What happens at second t, in this order: captions and questions of earlier seconds; the frame of t is read; standing
requests are looked at.  So a question of second q has every frame up to q and none behind it.

While an answer is spoken, frames and captions go on entering between its tokens (voice.py says which and when), other
questions wait for its end, and standing requests are looked at behind the first frame after it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from penstock.core import Frame
from penstock.errors import PenstockError
from penstock.io.captions import Caption
from penstock.io.frames import Notice
from penstock.reducers import Reduced
from penstock.reducers.base import everything
from penstock.triggers import Debounce, Monitor
from penstock.watch.counts import Counts, Limits
from penstock.watch.events import Event
from penstock.watch.eyes import Eyes, Reader
from penstock.watch.in_view import InView
from penstock.watch.pipeline import Pipeline, Seen
from penstock.watch.questions import Agenda, Question, about
from penstock.watch.spans import Seconds, View
from penstock.watch.speaking import Requests, worded
from penstock.watch.voice import Asked, Spoken, Voice

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
    emit: Callable[[Event], None] = lambda event: None
    stopped: Callable[[], bool] = lambda: False  # whether somebody wants it to end
    note: Callable[[float], None] = lambda seconds: None  # told how long the reading of each unit took
    monitor: Monitor | None = None  # may stop an answer
    debounce: Debounce | None = None
    lingers: bool = False  # behind the end of the source questions can still be asked, until `stopped`

    def __post_init__(self) -> None:
        self.counts, self.seconds = Counts(), Seconds()
        self.voice = Voice(
            self.reader, self.pipeline, max_new=self.limits.max_new, speech=self.limits.speech, monitor=self.monitor,
            debounce=self.debounce, apart=self.limits.apart,
        )  # fmt: skip
        self.view = InView()
        self.newest: Frame | None = None  # the newest frame that was read
        self._asked: deque[Asked] = deque()  # from other threads
        self._change = 0.0  # of frames behind which no request was looked at
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

    def ask(self, text: str, interrupts: bool = False) -> Asked:
        """Ask now; from any thread.  It waits for its turn; with `interrupts` it ends the answer under way."""
        asked = Asked(text, interrupts)
        (self._asked.appendleft if interrupts else self._asked.append)(asked)
        return asked

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
                self._attend()
                if item is None and speaks_on():
                    self._say()
                elif item is None:
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
                    else:
                        self.view.skip()
                self._tell_drops()
                yield
            self.ended = self.ended or "source"
            self._finish()
            self._tell_drops()
            while self.lingers and self.ended == "source" and not self.stopped():
                self._attend()
                self._settle()
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
        self._go_on(t)
        while not self.voice.is_speaking and (question := self.agenda.due(t)) is not None:
            self._hear(min(question.at, t))
            self._ask(question, max(question.at, self.t))
            self._go_on(t)
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
        self.t = max(self.t, seen.t)
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
            self._error(str(error))
            return
        if not entered:
            self.seconds.still(seen.t)
        else:
            self.seconds.note(seen.t, at)
        self.view.see(seen)
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
            self._error(str(error))
            return
        for item in said:
            self._end_silence()
            self.counts.announcements += 1
            facts: dict[str, object] = {"cut": "monitor"} if item.cut else {}
            self.emit(Event(self.t, "announcement", item.text, item.request, facts))
        if not said and self.requests.requests and self._quiet_since is None:
            self._quiet_since = self.t

    def _end_silence(self) -> None:
        if self._quiet_since is not None:
            text = f"nothing to say from {self._quiet_since:.1f} s to {self.t:.1f} s"
            self.emit(Event(self.t, "silence", text, None, {"since": round(self._quiet_since, 3)}))
            self._quiet_since = None

    # -- answers ----------------------------------------------------------------------------------------------------

    def _ask(self, question: Question, t: float, asked: Asked | None = None) -> None:
        """Begin to answer, or say why not."""
        named = about(question.text)
        refusal = self.seconds.refusal(named if named is not None else self.seconds.last or 0.0, self._views())
        if refusal is not None:
            facts: dict[str, object] = {"asked": None if math.isinf(question.at) else question.at, "refused": True}
            self._answer(t, refusal, question, facts, asked)
            return
        with self._speaking(question, asked):
            look = self._look_again if named is None and not self.limits.as_left else None
            self._told(self.voice.begin(question, worded(self.reader, question.text), t, asked, look))

    def _look_again(self, speaker: Any) -> None:
        """What is in view enters whole before a question, if reducers left some of it out."""
        apart, seen = speaker is not self.reader, self.view.lacking
        if seen is None:
            return
        if not apart:
            self.seconds.note(seen.t, self.reader.tokens)
            self.counts.tokens_kept += self.view.missing
            self.counts.tokens_dropped -= self.view.missing
            self.view.complete()
        self.eyes.read(seen.visual, Reduced(everything(seen.visual)), speaker if apart else None)

    def _say(self) -> None:
        """The answer goes on by one token."""
        assert self.voice.now is not None
        with self._speaking(self.voice.now.question, self.voice.now.asked):
            self._told(self.voice.go_on())

    def _go_on(self, t: float) -> None:
        """The answer goes on until a frame of second t may enter."""
        while self.voice.is_speaking and not self.voice.admits(t):
            if self._is_unwanted():
                self._told(self.voice.cut())
            else:
                self._say()

    def _is_unwanted(self) -> bool:
        spoken = self.voice.now
        return self.stopped() or (spoken is not None and spoken.asked is not None and spoken.asked.is_cancelled)

    def _attend(self) -> None:
        """Questions that somebody asks now, in their order."""
        if self.voice.is_speaking and self._is_unwanted():
            self._told(self.voice.cut())
        while self._asked:
            if self.voice.is_speaking:
                if not self._asked[0].interrupts:
                    return
                self._told(self.voice.cut())
            asked = self._asked.popleft()
            question = Question(self.t, 0, asked.text)
            if asked.is_cancelled or self.ended == "interrupted":
                text = "not asked: taken back." if asked.is_cancelled else f"not asked: interrupted at {self.t:.1f} s."
                self._answer(self.t, text, question, {"refused": True}, asked)
            else:
                self._ask(question, self.t, asked)
                self._go_on(self.t)

    @contextmanager
    def _speaking(self, question: Question, asked: Asked | None) -> Iterator[None]:
        """What goes wrong with an answer is one event, and the time that it takes is counted."""
        began = time.perf_counter()
        try:
            yield
        except PenstockError as error:
            self._error(str(error), {"question": question.text})
            if asked is not None:
                asked.event = Event(self.t, "error", str(error), question.text)
        self.counts.busy += time.perf_counter() - began

    def _told(self, spoken: Spoken | None) -> None:
        if spoken is not None:
            at = spoken.question.at
            facts = {"asked": None if math.isinf(at) else at} | spoken.facts()
            self._answer(max(spoken.t, self.t), spoken.text.strip(), spoken.question, facts, spoken.asked)

    def _views(self) -> Sequence[View]:
        views: Sequence[View] = self.reader.memory.view()
        return views

    def _answer(
        self, t: float, text: str, question: Question, facts: dict[str, object], asked: Asked | None = None
    ) -> None:  # fmt: skip
        self.counts.answers += 1
        event = Event(t, "answer", text, question.text, facts)
        self.emit(event)
        if asked is not None:
            asked.event = event

    def _finish(self) -> None:
        """The stream is over: what was to be asked at its end, and what it never reached."""
        if self.ended == "limit" and self.limits.seconds is not None:
            self._until(self.limits.seconds)
        self._settle()
        while self._asked:
            self._attend()
            self._settle()
        while (question := self.agenda.rest()) is not None:
            if self.ended == "interrupted":
                self._answer(self.t, f"not asked: interrupted at {self.t:.1f} s.", question, {"refused": True})
            elif question.at > self.t and not math.isinf(question.at):
                text = f"not seen: the stream ended at {self.t:.1f} s, before {question.at:.1f} s."
                self._answer(self.t, text, question, {"asked": question.at, "refused": True})
            else:
                self._ask(question, self.t)
                self._settle()
        self._end_silence()

    def _settle(self) -> None:
        """The answer under way is spoken to its end, unless somebody wants all to end."""
        while self.voice.is_speaking:
            if self.ended == "interrupted" or self._is_unwanted():
                self._told(self.voice.cut())
            else:
                self._say()

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
