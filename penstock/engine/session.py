"""One session of an engine: its input queue, the session itself, and where its memory is."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.core import Phase
from penstock.engine.answer import Answer
from penstock.engine.attic import Kept
from penstock.engine.cadence import RECENT_OF_ONE, Cadence
from penstock.engine.inbox import Inbox, Piece, Question
from penstock.engine.policies import Candidate
from penstock.engine.records import Appended, Place, Status
from penstock.engine.rewriting import Draft
from penstock.engine.speaking import Speaking
from penstock.errors import Overloaded, UsageError
from penstock.models.sampling import Sampling
from penstock.reply import opens_turn, turn_ids
from penstock.session import Session
from penstock.snapshot import save

if TYPE_CHECKING:
    from penstock.engine.engine import Engine

AWAY = 1 << 30  # the row of a session that has none: no memory has so many
_SLICE = 4096  # bytes or characters that become one piece of the queue


class EngineSession:
    """One stream among many.  Made by `Engine.open`, `Engine.resume` and `fork`."""

    def __init__(self, engine: Engine, id: str, core: Session, inbox: Inbox) -> None:
        self.id = id
        self.engine, self.core, self.inbox = engine, core, inbox
        self.row: int | None = None
        self.kept: Kept | None = None
        self.is_forgotten = False  # away, and to be read again from its log
        self.twin: tuple[tuple[str, int], Kept] | None = None  # what its newest fork took, and of which past
        self.speaking: Speaking | None = None
        self.error: BaseException | None = None  # why it cannot go on
        self.is_closed = False
        self.served = -inf  # when a step last served it
        self.waits_since = 0.0  # when it last began to have work
        self.turns = 0  # steps since it got its row
        self._in_answer = core._in_answer  # as it will be when the queue is read
        self.cadence = Cadence(RECENT_OF_ONE, engine.cadence)
        self.text_lock = threading.RLock()  # the encoder, and the order in which its output is queued
        self.drafted: Draft | None = None  # input that is not final
        self.closes = False  # with its first answer: a fork that only answers

    # -- give it something --------------------------------------------------------------------------------------

    def append(self, data: str | bytes | Sequence[int]) -> Appended:
        """Queue more of the stream; returns at once with what is pending.  Raises Overloaded by the lag policy."""
        with self.text_lock:
            self._check_open()
            inbox, clock = self.inbox, self.engine.clock
            size = _size(data)
            now, accepted, tokens = clock.now(), inbox.accepted, 0
            if not isinstance(data, (str, bytes, bytearray, memoryview)):
                self.core._check_tokens(data)
            with self.engine.lock:
                if inbox.rule.policy == "refuse" and inbox.is_late(now, size):
                    inbox.counters["refused"] += 1
                    raise Overloaded(
                        f"session {self.id} is behind its input by {inbox.lag_ms(now):.0f} ms and "
                        f"{inbox.waiting} bytes: append less, or again later."
                    )
            for ids, taken in self._encoded(data):
                with self.engine.lock:
                    inbox.put(ids, taken, self._held(), now)
                    self.engine.has_work(self)
                    if self.drafted is not None:
                        self.drafted.ids += ids
                tokens += len(ids)
            with self.engine.lock:
                dropped = inbox.relieve(now)
                is_late = inbox.is_late(now)
                inbox.counters["late"] += is_late
                return Appended(
                    inbox.accepted - accepted, tokens, inbox.pending, inbox.lag_ms(now),
                    is_late and inbox.rule.policy == "wait", dropped,
                )  # fmt: skip

    def _encoded(self, data: str | bytes | Sequence[int]) -> Iterator[tuple[Sequence[int], int]]:
        """(token ids, bytes) of slices; token ids count four bytes each and end the text before them.

        They are taken as they are: a stream that begins with ids has no BOS that is not among them.
        """
        if isinstance(data, (str, bytes, bytearray, memoryview)):
            encoder = self.core._text()
            for start in range(0, len(data), _SLICE):
                part = data[start : start + _SLICE]
                yield encoder.feed(part if isinstance(part, str) else bytes(part)), _size(part)
            return
        held = self.core.encoder
        if held is not None and len(data):
            begins, ids = not held.state_dict()["started"], held.flush()
            yield [] if begins and ids == list(held.prefix_ids) else ids, 0
        for start in range(0, len(data), _SLICE):
            yield list(data[start : start + _SLICE]), 4 * len(data[start : start + _SLICE])

    def _held(self) -> int:
        return self.core.encoder.pending if self.core.encoder is not None else 0

    def ask(
        self, question: str | None = None, *, raw: bool = False, remember: bool = True, deadline: float | None = None,
        max_new: int = 128, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, stop: Sequence[str] = (),
        seed: int = 0, said: Sequence[int] = (),
    ) -> Answer:  # fmt: skip
        """Queue a question behind all that was appended; its answer begins when that is read.

        `deadline`: seconds from now; an answer that is not over by then is ended as it is.  `remember=False` asks a
        fork, which is closed with its answer.  `said`: token ids that it begins with (`Answer.said` of an earlier one).
        """
        self.core._check_tokens(said)
        sampling = Sampling(max_new, temperature, top_k, top_p, tuple(stop), seed, tuple(said))
        if self.drafted is not None:
            raise UsageError(f"the input of session {self.id} is a draft: end it before you ask.")
        if not remember:
            fork = self.fork()
            fork.closes = True
            return fork.ask(
                question, raw=raw, deadline=deadline, max_new=max_new, temperature=temperature, top_k=top_k,
                top_p=top_p, stop=stop, seed=seed, said=said,
            )  # fmt: skip
        with self.text_lock:
            self._check_open()
            now = self.engine.clock.now()
            answer = Answer(self.engine, self.cadence, now, inf if deadline is None else now + deadline)
            has_turn = opens_turn(self.core, question, raw)
            ids = list(turn_ids(self.core, question, raw, self._in_answer))
            self._in_answer = self._in_answer or has_turn
            asked = 0 if question is None else _size(question)
            with self.engine.lock:
                self._check_open()  # it may have failed since
                self.inbox.put(ids[0], 0, 0, now, Phase.ASK)  # what was held back
                for i, part in enumerate(ids[1:]):
                    is_question = i == (1 if has_turn else 0)
                    self.inbox.put(part, asked if is_question else 0, 0, now, Phase.ASK, has_turn and i == 0)
                answer.question_tokens = sum(map(len, ids[1:]))
                self.inbox.ask(Question(answer, sampling, has_turn, now))
                self.inbox.counters["answers"] += 1
                self.engine.has_work(self)
        return answer

    # -- branch, go back, keep ----------------------------------------------------------------------------------

    def fork(self, id: str | None = None) -> EngineSession:
        """A second session with the same past and the same input waiting; refused while an answer is open."""
        with self.text_lock, self.engine.between_steps():
            self._check_idle("forked")
            return self.engine.branch(self, id)

    def draft(self) -> Draft:
        """Begin input that may still be rewritten (rewriting.py); waits until what came before is read."""
        with self.text_lock:
            self._check_idle("drafted")
            return Draft(self)

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens of the stream; held-back text is dropped.  Exact, or NotRewindable."""
        with self.text_lock, self.engine.between_steps():
            self._check_idle("truncated")
            if not 0 <= length <= self.tokens:
                raise UsageError(f"session {self.id} has {self.tokens} tokens: it cannot be truncated to {length}.")
            if length < self.core.tokens:
                self.engine.seat(self)
                self.core.take_back(length)
            self.core.drop_held()
            self.inbox.drop_held()
            self.inbox.cut(length - self.core.tokens)
            self._in_answer = self.core._in_answer

    def save(self, path: str | Path) -> None:
        """Write the session to one file, what waits included; refused while an answer is open."""
        with self.text_lock, self.engine.between_steps():
            self._check_idle("saved")
            if self.kept is None:
                self.engine.seat(self)
            row = None if self.kept is None else self.engine.attic.read(self.kept)
            waiting = [t for piece in self.inbox.items if isinstance(piece, Piece) for t in piece.tokens[piece.done :]]
            save(self.core, Path(path), row, waiting, self.inbox.waiting)

    def close(self) -> None:
        """Cancel its answers and give up its memory; a second close does nothing."""
        with self.text_lock, self.engine.between_steps():
            if not self.is_closed:
                self.engine.forget(self)

    def drained(self, timeout: float | None = None) -> bool:
        """Wait (or step) until all that was queued is read and answered; False when time is over."""
        return self.engine.wait_until(lambda: not self.has_work, timeout)

    # -- look at it ---------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        """Of the stream: in the memory or queued."""
        return self.core.tokens + self.inbox.tokens

    @property
    def has_work(self) -> bool:
        return self.error is None and not self.is_closed and (self.speaking is not None or len(self.inbox) > 0)

    @property
    def place(self) -> Place:
        if self.row is not None:
            return Place.DEVICE
        if self.kept is None:
            return Place.RAM if self.is_forgotten else Place.NEW
        return Place.RAM if self.kept.path is None else Place.DISK

    def status(self) -> Status:
        """Its counters at this moment."""
        with self.engine.lock:
            inbox, now = self.inbox, self.engine.clock.now()
            size = self.engine.row_nbytes if self.row is not None else 0 if self.kept is None else self.kept.nbytes
            counters = {**inbox.counters, "bytes_dropped": inbox.dropped, "bytes_read": inbox.read}
            return Status(
                self.id, self.tokens, self.core.tokens, inbox.pending, size, inbox.lag_ms(now),
                self.core.meter.recent_nll, self.place, len(inbox.questions) + (self.speaking is not None),
                self.core.meter.seconds, counters, self.cadence.pace(),
            )  # fmt: skip

    def candidate(self, quantum: int, guesses: int = 0) -> Candidate:
        """What it wants of the next step."""
        speaking, head = self.speaking, self.inbox.head
        limit = self.engine.row_entries
        held = self.core.tokens if limit is None else min(self.core.tokens, limit)
        arrived, tokens, deadline, most = 0.0, 0, inf, 0
        if speaking is not None:
            arrived, deadline = speaking.answer.asked, speaking.answer.deadline
            tokens, most = int(speaking.feed is not None), speaking.turn.sampling.max_new
        elif isinstance(head, Question):
            arrived, deadline, most = head.arrived, head.deadline, head.sampling.max_new
        elif head is not None:
            arrived, deadline = head.arrived, self.inbox.deadline()
            tokens = self.inbox.available(self.engine.limits.chunk)
            most = self.inbox.questions[0].sampling.max_new if self.inbox.questions else 0
        return Candidate(
            self.id, arrived, tokens, deadline, self.served, decodes=speaking is not None and tokens > 0,
            has_row=self.row is not None, is_pinned=speaking is not None and speaking.is_pinned,
            is_fresh=self.row is not None and self.turns < quantum, held=held,
            grown=0 if speaking is None else len(speaking.turn.tokens), most=most, limit=limit,
            guesses=0 if speaking is None else speaking.turn.may_guess(guesses), waiting=self.inbox.tokens,
        )  # fmt: skip

    def _check_open(self) -> None:
        if self.is_closed:
            raise UsageError(f"session {self.id} is closed: open another one.")
        if self.error is not None:
            raise self.error

    def _check_idle(self, action: str) -> None:
        self._check_open()
        if self.drafted is not None:
            raise UsageError(f"the input of session {self.id} is a draft: it can be {action} when that has ended.")
        if self.speaking is not None or self.inbox.questions:
            raise UsageError(f"session {self.id} is answering: it can be {action} when the answer has ended.")


def _size(data: str | bytes | bytearray | memoryview | Sequence[int]) -> int:
    """Bytes of some input; four for a token id."""
    if isinstance(data, str):
        return len(data.encode("utf-8", "surrogatepass"))
    return len(data) if isinstance(data, (bytes, bytearray, memoryview)) else 4 * len(data)
