"""The answers of one watcher: questions of the stream's agenda and those that somebody puts now, one at a time.

While an answer is spoken, frames and captions go on entering between its tokens (voice.py says which and when); other
questions wait for its end, unless they interrupt it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from penstock.errors import PenstockError
from penstock.reducers import Reduced
from penstock.reducers.base import everything
from penstock.watch.counts import Limits
from penstock.watch.events import Record
from penstock.watch.eyes import Eyes, Reader
from penstock.watch.in_view import InView
from penstock.watch.pipeline import Seen
from penstock.watch.questions import Agenda, Question, about
from penstock.watch.spans import Seconds
from penstock.watch.speaking import worded
from penstock.watch.voice import Asked, Spoken, Voice


class Answers:
    """Answers, or says why not; told what has been seen."""

    def __init__(
        self, reader: Reader, eyes: Eyes, voice: Voice, record: Record, limits: Limits, stopped: Callable[[], bool]
    ) -> None:  # fmt: skip
        self._reader, self._eyes, self._voice = reader, eyes, voice
        self._record, self._limits, self._stopped = record, limits, stopped
        self.seconds = Seconds()
        self._view = InView()
        self._asked: deque[Asked] = deque()  # from other threads
        self._interrupted = False

    # -- what has been seen -----------------------------------------------------------------------------------------

    def see(self, seen: Seen, at: int | None) -> None:
        """A unit was read, its tokens from index `at`; None: nothing of it entered."""
        if at is None:
            self.seconds.still(seen.t)
        else:
            self.seconds.note(seen.t, at)
        self._view.see(seen)

    def skip(self) -> None:
        """A frame was left out before it was encoded."""
        self._view.skip()

    # -- questions --------------------------------------------------------------------------------------------------

    def put(self, text: str, interrupts: bool) -> Asked:
        """A question for `attend`; from any thread."""
        asked = Asked(text, interrupts)
        (self._asked.appendleft if interrupts else self._asked.append)(asked)
        return asked

    def attend(self) -> None:
        """Questions that somebody asks now, in their order."""
        if self._voice.is_speaking and self._is_unwanted():
            self._told(self._voice.cut())
        while self._asked:
            if self._voice.is_speaking:
                if not self._asked[0].interrupts:
                    return
                self._told(self._voice.cut())
            asked, t = self._asked.popleft(), self._record.t
            question = Question(t, 0, asked.text)
            if asked.is_cancelled or self._interrupted:
                text = "not asked: taken back." if asked.is_cancelled else f"not asked: interrupted at {t:.1f} s."
                self._answer(t, text, question, {"refused": True}, asked)
            else:
                self.begin(question, t, asked)
                self.go_on(t)

    def begin(self, question: Question, t: float, asked: Asked | None = None) -> None:
        """Begin to answer, or say why not."""
        named = about(question.text)
        views = self._reader.memory.view()
        refusal = self.seconds.refusal(named if named is not None else self.seconds.last or 0.0, views)
        if refusal is not None:
            facts: dict[str, object] = {"asked": None if math.isinf(question.at) else question.at, "refused": True}
            self._answer(t, refusal, question, facts, asked)
            return
        with self._speaking(question, asked):
            look = self._look_again if named is None and not self._limits.as_left else None
            self._told(self._voice.begin(question, worded(self._reader, question.text), t, asked, look))

    def _look_again(self, speaker: Any) -> None:
        """What is in view enters whole before a question, if reducers left some of it out."""
        apart, seen, counts = speaker is not self._reader, self._view.lacking, self._record.counts
        if seen is None:
            return
        if not apart:
            self.seconds.note(seen.t, self._reader.tokens)
            counts.tokens_kept += self._view.missing
            counts.tokens_dropped -= self._view.missing
            self._view.complete()
        self._eyes.read(seen.visual, Reduced(everything(seen.visual)), speaker if apart else None)

    # -- the answer under way ---------------------------------------------------------------------------------------

    def say(self) -> None:
        """The answer goes on by one token."""
        assert self._voice.now is not None
        with self._speaking(self._voice.now.question, self._voice.now.asked):
            self._told(self._voice.go_on())

    def go_on(self, t: float) -> None:
        """The answer goes on until a frame of second t may enter."""
        while self._voice.is_speaking and not self._voice.admits(t):
            if self._is_unwanted():
                self._told(self._voice.cut())
            else:
                self.say()

    def settle(self) -> None:
        """The answer under way is spoken to its end, unless somebody wants all to end."""
        while self._voice.is_speaking:
            if self._interrupted or self._is_unwanted():
                self._told(self._voice.cut())
            else:
                self.say()

    def _is_unwanted(self) -> bool:
        spoken = self._voice.now
        return self._stopped() or (spoken is not None and spoken.asked is not None and spoken.asked.is_cancelled)

    @contextmanager
    def _speaking(self, question: Question, asked: Asked | None) -> Iterator[None]:
        """What goes wrong with an answer is one event, and the time that it takes is counted."""
        began = time.perf_counter()
        try:
            yield
        except PenstockError as error:
            event = self._record.error(str(error), question.text)
            if asked is not None:
                asked.event = event
        self._record.counts.busy += time.perf_counter() - began

    def _told(self, spoken: Spoken | None) -> None:
        if spoken is not None:
            at = spoken.question.at
            facts = {"asked": None if math.isinf(at) else at} | spoken.facts()
            t = max(spoken.t, self._record.t)
            self._answer(t, spoken.text.strip(), spoken.question, facts, spoken.asked)

    def _answer(
        self, t: float, text: str, question: Question, facts: dict[str, object], asked: Asked | None = None
    ) -> None:  # fmt: skip
        self._record.counts.answers += 1
        event = self._record.tell("answer", text, question.text, facts, t)
        if asked is not None:
            asked.event = event

    # -- the end ----------------------------------------------------------------------------------------------------

    def finish(self, agenda: Agenda, interrupted: bool) -> None:
        """The stream is over: what was to be asked at its end, and what it never reached."""
        self._interrupted, now = interrupted, self._record.t
        self.settle()
        while self._asked:
            self.attend()
            self.settle()
        while (question := agenda.rest()) is not None:
            if interrupted:
                self._answer(now, f"not asked: interrupted at {now:.1f} s.", question, {"refused": True})
            elif question.at > now and not math.isinf(question.at):
                text = f"not seen: the stream ended at {now:.1f} s, before {question.at:.1f} s."
                self._answer(now, text, question, {"asked": question.at, "refused": True})
            else:
                self.begin(question, now)
                self.settle()
