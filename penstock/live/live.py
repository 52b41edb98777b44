"""One stream that is watched and spoken about at the same time.

The order of events, which is all that results depend on:

1. Inputs (frames, text) enter the memory in the order in which they were put.
2. A question enters when no answer is under way, behind all that was let in by then.  Questions wait in their order.
3. While an answer is spoken, input enters between two of its tokens: behind every token whose text has been delivered,
   before the next one.  Which one comes next is the share's decision; a token whose text is still held back (half a
   character, the beginning of a stop string) keeps input waiting, for 64 tokens at most.
4. An interruption ends the answer behind the last delivered piece; tokens that delivered nothing leave the memory, what
   came in between stays.

With `group-positions` what comes in is read as if nothing were being written (Speak While Watching's group-decoupled
scheme, Think While Watching's two caches, TaYS's units: one memory, read by two sides); with any other memory answer
and input share one line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from penstock.core import Clock, Frame, Phase, RealClock
from penstock.errors import InputError, UsageError
from penstock.live.inbox import Inbox
from penstock.live.share import Share
from penstock.models.sampling import Sampling
from penstock.models.vision import Visual
from penstock.reply import Feed, Turn, begin, opens_turn, turn_ids
from penstock.session import Session
from penstock.triggers import Debounce, Monitor

Scheme = Literal["while", "turns"]
Kind = Literal["perceived", "dropped", "question", "piece", "end", "cut", "error"]
Why = Literal["finished", "full", "interrupted", "monitor"]


@dataclass(frozen=True)
class LiveEvent:
    """One thing that happened, at second `t` of the clock, with `tokens` in the stream behind it."""

    kind: Kind
    t: float
    tokens: int
    text: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    question: str | None
    raw: bool
    sampling: Sampling


class Live:
    """A session that perceives while it speaks.  `put`, `ask` and `interrupt` may be called from any thread.

    `scheme`: `while` lets input in between the tokens of an answer, `turns` when the answer has ended.  `monitor`
    scores every token of an answer; `debounce` says how many bad ones stop it.
    """

    def __init__(
        self, session: Session, *, scheme: Scheme = "while", share: Share | None = None, waiting: int = 256,
        monitor: Monitor | None = None, debounce: Debounce | None = None, clock: Clock | None = None,
    ) -> None:  # fmt: skip
        if scheme not in ("while", "turns"):
            raise UsageError(f"unknown scheme {scheme!r}: choose while or turns.")
        self.session, self.scheme, self.share = session, scheme, share or Share()
        self.monitor, self.debounce = monitor, debounce or Debounce()
        self.clock = clock or RealClock()
        self.inbox = Inbox(waiting)
        self.perceived_while_speaking = 0  # inputs
        self._questions: deque[_Asked] = deque()
        self._news: deque[LiveEvent] = deque()  # of the callers' threads
        self._interrupted = False
        self._answer: _Answer | None = None

    # -- from any thread ----------------------------------------------------------------------------------------

    def put(self, item: Frame | Visual | str) -> bool:
        """Take an input; False if a picture that waited had to leave for it."""
        gone = self.inbox.put(item)
        if gone is not None:
            facts = {"t": gone.t} if isinstance(gone, Frame) else {}
            self._news.append(self._event("dropped", "", facts))
        return gone is None

    def ask(
        self, question: str | None = None, *, raw: bool = False, max_new: int = 128, temperature: float = 0.0,
        stop: Sequence[str] = (), seed: int = 0, interrupt: bool = False,
    ) -> None:  # fmt: skip
        """Ask (None: let the model go on); with `interrupt` the answer under way ends first."""
        sampling = Sampling(max_new, temperature, 0, 1.0, tuple(stop), seed)
        self._questions.append(_Asked(question, raw, sampling))
        if interrupt:
            self.interrupt()

    def interrupt(self) -> None:
        """End the answer under way behind what has been delivered."""
        self._interrupted = True

    # -- the loop -----------------------------------------------------------------------------------------------

    @property
    def is_speaking(self) -> bool:
        return self._answer is not None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._answer or self._questions or len(self.inbox) or self._news)

    def run(self) -> Iterator[LiveEvent]:
        """Work until there is nothing to do."""
        while not self.is_idle:
            yield from self.step()

    def step(self) -> list[LiveEvent]:
        """One piece of work: let one input in, or let the answer go on by one token."""
        events = [self._news.popleft() for _ in range(len(self._news))]
        if self._answer is None:
            self._interrupted = False
            if len(self.inbox):
                events.append(self._perceive())
            elif self._questions:
                events += self.begin()
            return events
        if self._interrupted:
            return [*events, self._end("interrupted")]
        if self._may_perceive():
            return [*events, self._perceive()]
        return events + self._speak()

    @property
    def has_questions(self) -> bool:
        """Whether a question waits."""
        return bool(self._questions)

    def begin(self) -> list[LiveEvent]:
        """Let the next question in now, before the inputs that wait; no answer may be under way."""
        return self._begin(self._questions.popleft())

    @property
    def lets_in(self) -> bool:
        """Whether input may enter now: no answer is under way, or all of it that is in the memory was delivered."""
        answer = self._answer
        return answer is None or (answer.pending is not None and answer.turn.is_settled)

    def perceives(self, filled: float) -> bool:
        """Whether what waits elsewhere (`filled`: how much of its room it takes, 0 to 1) is to enter before the next
        token of the answer: `letting_in` is the way."""
        answer = self._answer
        return self.lets_in and (answer is None or self.share.perceives(answer.spent, filled))

    @contextmanager
    def letting_in(self) -> Iterator[None]:
        """What is let into the session in here enters between two tokens of the answer under way, if there is one."""
        session, answer = self.session, self._answer
        assert self.lets_in, "a token of the answer may still be taken back"
        began, before = self.clock.now(), session.tokens
        session._replying = False  # the answer's tokens are settled: nothing of what enters now is taken back
        try:
            yield
        finally:
            session._replying = answer is not None
            if answer is not None:
                answer.turn.perceived += session.tokens - before
                answer.spent = (answer.spent[0] + self.clock.now() - began, answer.spent[1])
        self.perceived_while_speaking += answer is not None

    def close(self) -> list[LiveEvent]:
        """End the answer under way, let in what waits."""
        events = [self._end("interrupted")] if self._answer is not None else []
        self._questions.clear()
        while not self.is_idle:
            events += self.step()
        return events

    def _may_perceive(self) -> bool:
        waits = self.scheme != "turns" and len(self.inbox) > 0
        return waits and self.perceives(len(self.inbox) / self.inbox.most)

    def _perceive(self) -> LiveEvent:
        """Let the oldest input in."""
        item, session, is_speaking = self.inbox.take(), self.session, self.is_speaking
        before = session.tokens
        try:
            with self.letting_in():
                if isinstance(item, str):
                    session.feed(item)
                elif isinstance(item, Visual):
                    session.ingest_embeddings(item)
                else:
                    session.see(item)
        except InputError as error:  # a picture that cannot be read; the session is as it was before it
            return self._event("error", str(error))
        facts: dict[str, Any] = {"entered": session.tokens - before, "speaking": is_speaking}
        return self._event("perceived", item if isinstance(item, str) else "", facts)

    # -- the answer ---------------------------------------------------------------------------------------------

    def _begin(self, asked: _Asked) -> list[LiveEvent]:
        session = self.session
        session._check_idle()
        turn = Turn(session, asked.sampling)
        session._replying = True
        if self.monitor is not None:
            self.monitor.start()
        self._answer = _Answer(turn, self.share.start(), self.debounce.start())
        try:
            session.runner.between_replies()
            has_turn = opens_turn(session, asked.question, asked.raw)
            for i, ids in enumerate(turn_ids(session, asked.question, asked.raw, session._in_answer)):
                if i == 1 and has_turn:
                    session.turn_opens()
                session.ingest(ids, Phase.ASK)
            session.seer.close(session, Phase.ASK)
            begin(session, has_turn)
        except BaseException:
            self._answer, session._replying = None, False
            raise
        self._answer.items = turn.run()
        return [self._event("question", asked.question or ""), *self._go_on()]

    def _speak(self) -> list[LiveEvent]:
        """Let in the token that is due, and go on to the next one."""
        answer = self._answer
        assert answer is not None
        began = self.clock.now()
        try:
            if answer.pending is not None:
                self.session.decode(answer.pending)
                answer.pending = None
            events = self._go_on()
        except BaseException:
            self._answer, self.session._replying = None, False
            raise
        answer.spent = (answer.spent[0], answer.spent[1] + self.clock.now() - began)
        return events

    def _go_on(self) -> list[LiveEvent]:
        """Pieces up to the next token that is due; the end, if there is none."""
        answer = self._answer
        assert answer is not None
        events: list[LiveEvent] = []
        for item in answer.items:
            if isinstance(item, Feed):
                answer.pending = item.token
                return events
            events.append(self._event("piece", item))
            answer.text += item
            if self._objects(answer):
                return [*events, self._end("monitor")]
        return [*events, self._end("full" if answer.turn.was_full else "finished")]

    def _objects(self, answer: _Answer) -> bool:
        if self.monitor is None:
            return False
        score = self.monitor.score(answer.text, answer.turn.tokens[-1])
        if score is None:
            return False
        answer.scores, stops = self.debounce.step(answer.scores, score)
        return stops

    def _end(self, why: Why) -> LiveEvent:
        """The memory keeps exactly the tokens of which text was delivered."""
        answer = self._answer
        assert answer is not None
        try:
            answer.items.close()
            for feed in answer.turn.settle():
                self.session.decode(feed.token)
        finally:
            self._answer, self.session._replying, self._interrupted = None, False, False
        facts = {"why": why, "answer_tokens": answer.turn.keep, "perceived_tokens": answer.turn.perceived}
        return self._event("cut" if why in ("interrupted", "monitor") else "end", answer.text, facts)

    def _event(self, kind: Kind, text: str = "", facts: dict[str, Any] | None = None) -> LiveEvent:
        return LiveEvent(kind, self.clock.now(), self.session.tokens, text, facts or {})


@dataclass
class _Answer:
    """The answer under way."""

    turn: Turn
    spent: tuple[float, float]
    scores: tuple[bool, ...]
    items: Any = None  # the turn's generator
    pending: int | None = None  # the token that is due
    text: str = ""
