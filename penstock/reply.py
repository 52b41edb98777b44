"""One reply: ask, decode, deliver text, and leave in the memory exactly what was delivered.

A sampled token is let in when the next one is needed.  Its text may be held (an unfinished character, the possible
beginning of a stop string) or empty; a mark is open while the newest tokens have delivered nothing, so that an
interruption or a stop string takes back what nobody read.  A token stays if any part of its text was delivered, or of
the text behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from penstock.core import Phase
from penstock.errors import InputError, UsageError
from penstock.models.sampling import Sampler, Sampling
from penstock.models.text import StopStrings, TextDecoder

if TYPE_CHECKING:
    from penstock.session import Session

_ROOM = 64  # tokens let in without delivering text, before the reply is ended


def reply(session: Session, question: str | None, raw: bool, sampling: Sampling) -> Iterator[str]:
    """Pieces of the answer as they become final."""
    if session._replying:  # the first reply was made earlier, but neither had begun
        raise UsageError("this session is already replying: read or close the first reply, or ask on a fork.")
    turn = _Turn(session, sampling)
    session._replying = True
    try:
        session.runner.between_replies()
        _ask(session, question, raw)
        yield from turn.run()
    finally:
        try:
            turn.settle()
        finally:
            session._replying = False


def _ask(session: Session, question: str | None, raw: bool) -> None:
    """Let in what is held back, then the question in its turn."""
    encoder = session._text()
    turns = None if raw else session.turns
    tokenizer: Any = session.model.tokenizer

    def let_in(ids: list[int]) -> None:
        session.ingest(ids, Phase.ASK)

    let_in(encoder.flush())
    if question is not None and turns is not None:
        before = turns.between if session._in_answer else turns.opening
        if session._turns_from is None:
            session._turns_from = session.tokens
        let_in(tokenizer(before, add_special_tokens=False)["input_ids"])
        let_in(encoder.feed(question) + encoder.flush())
        let_in(tokenizer(turns.asking, add_special_tokens=False)["input_ids"])
        session._in_answer = True
    elif question is not None:
        let_in(encoder.feed(question) + encoder.flush())
    if session.logits is None:
        raise InputError("there is nothing to reply to: feed some text or ask a question first.")


def end_tokens(session: Session) -> frozenset[int]:
    """Tokens with which the model ends an answer."""
    hf: Any = session.model.attached.hf
    found: set[int] = set()
    for owner in (getattr(hf, "generation_config", None), hf.config):
        value = getattr(owner, "eos_token_id", None)
        found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    value = getattr(session.model.tokenizer, "eos_token_id", None)
    return frozenset(found | ({value} if value is not None else set()))


class _Turn:
    """The state of one reply."""

    def __init__(self, session: Session, sampling: Sampling) -> None:
        self.session, self.sampling = session, sampling
        self.sampler = Sampler(sampling)
        self.decoder = TextDecoder(session.model.tokenizer)
        self.stops = StopStrings(sampling.stop)
        self.ends = end_tokens(session)
        self.start = -1  # stream length when the answer began; -1 before
        self.tokens: list[int] = []
        self.begins: list[int] = []  # characters of the answer before each token's text
        self.keep = 0  # how many of the tokens have delivered text
        self.decoded = 0  # characters
        self.delivered = 0  # characters
        self.mark: Any = None

    @property
    def fed(self) -> int:
        """How many of the answer's tokens were let in."""
        return self.session.tokens - self.start

    def _deliver(self, piece: str) -> str:
        self.delivered += len(piece)
        while self.keep < len(self.begins) and self.begins[self.keep] < self.delivered:
            self.keep += 1
        return piece

    def run(self) -> Iterator[str]:
        session = self.session
        self.start = session.tokens
        logits = session.logits
        assert logits is not None
        stopped = False
        while len(self.tokens) < self.sampling.max_new and not stopped:
            token = self.sampler.choose(logits)
            if token in self.ends:
                break
            self.begins.append(self.decoded)
            self.tokens.append(token)
            text = self.decoder.push(token)
            self.decoded += len(text)
            piece, stopped = self.stops.push(text)
            if piece:
                yield self._deliver(piece)
            if stopped or len(self.tokens) == self.sampling.max_new or not self._guard():
                break
            logits = session.decode(token)
        if not stopped:
            text = self.decoder.flush()
            self.decoded += len(text)
            piece, stopped = self.stops.push(text)
            piece += "" if stopped else self.stops.flush()
            if piece:
                yield self._deliver(piece)

    def _guard(self) -> bool:
        """Before a token is let in: hold a mark while the newest have delivered nothing; False when it is full."""
        if self.keep == len(self.tokens):
            self._unmark()
        elif self.mark is None:
            self.mark = self.session.mark(max_new=self.room)
        return len(self.tokens) - self.keep <= self.room

    def _unmark(self) -> None:
        if self.mark is not None and any(m is self.mark for m in self.session._marks):
            self.session.commit(self.mark)
        self.mark = None

    @property
    def room(self) -> int:
        """Tokens that may wait for text: bytes of a character, a possible stop string."""
        return _ROOM + max((len(stop) for stop in self.sampling.stop), default=0)

    def settle(self) -> None:
        """Make the memory hold the delivered tokens, no more and no fewer."""
        if self.start < 0 or self.session._memory.rows[0].is_broken:
            return
        if self.keep < self.fed:
            self.session.take_back(self.start + self.keep)
        for token in self.tokens[self.fed : self.keep]:
            self.session.decode(token)
        self._unmark()
