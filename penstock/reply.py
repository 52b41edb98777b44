"""One reply: ask, decode, deliver text, and leave in the memory exactly what was delivered.

A sampled token is let in when the next one is needed.  Its text may be held (an unfinished character, the possible
beginning of a stop string) or empty; a mark is open while the newest tokens have delivered nothing, so that an
interruption or a stop string takes back what nobody read.  A token stays if any part of its text was delivered, or of
the text behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from penstock.core import Phase
from penstock.errors import InputError, UsageError
from penstock.models.sampling import Sampler, Sampling
from penstock.models.text import StopStrings, TextDecoder

if TYPE_CHECKING:
    from penstock.session import Session

ROOM = 64  # tokens let in without delivering text, before the reply is ended


@dataclass(frozen=True)
class Feed:
    """What a reply asks of whoever runs it: let in this token as part of the answer, then go on.

    Behind it, guesses of the tokens after it may be let in with the same step (`Turn.guess`).
    """

    token: int


def reply(session: Session, question: str | None, raw: bool, sampling: Sampling) -> Iterator[str]:
    """Pieces of the answer as they become final."""
    if session._replying:  # the first reply was made earlier, but neither had begun
        raise UsageError("this session is already replying: read or close the first reply, or ask on a fork.")
    turn = Turn(session, sampling)
    session._replying = True
    try:
        session.runner.between_replies()
        has_turn = opens_turn(session, question, raw)
        for i, ids in enumerate(turn_ids(session, question, raw, session._in_answer)):
            if i == 1 and has_turn:
                session.turn_opens()
            session.ingest(ids, Phase.ASK)
        session.seer.close(session, Phase.ASK)
        begin(session, has_turn)
        for item in turn.run():
            if isinstance(item, Feed):
                session.decode(item.token)
            else:
                yield item
    finally:
        try:
            for feed in turn.settle():
                session.decode(feed.token)
        finally:
            session._replying = False


def turn_ids(session: Session, question: str | None, raw: bool, in_answer: bool) -> Iterator[list[int]]:
    """Token ids of what is held back, then of the question in its turn; `in_answer`: behind an answer."""
    encoder = session._text()
    tokenizer: Any = session.model.tokenizer
    yield encoder.flush()
    turns = session.turns
    if question is not None and turns is not None and not raw:
        before = turns.between if in_answer else turns.opening
        yield tokenizer(before, add_special_tokens=False)["input_ids"]
        yield encoder.feed(question) + encoder.flush()
        yield tokenizer(turns.asking, add_special_tokens=False)["input_ids"]
    elif question is not None:
        yield encoder.feed(question) + encoder.flush()


def opens_turn(session: Session, question: str | None, raw: bool) -> bool:
    """Whether a question is wrapped in a turn of the chat template."""
    return question is not None and not raw and session.turns is not None


def begin(session: Session, has_turn: bool) -> None:
    """The question is in the memory and the answer begins."""
    session._in_answer = session._in_answer or has_turn
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


def begun(session: Session) -> str:
    """Let in the likeliest token that does not end an answer, where the model would rather end it; its text.

    Somebody has decided that now is a moment to speak; otherwise "" and nothing is let in.
    """
    ends = sorted(end_tokens(session))
    if session.logits is None or int(session.logits.argmax()) not in ends:
        return ""
    scores = session.logits.float().clone()
    scores[..., ends] = float("-inf")
    token = int(scores.argmax())
    text = session.model.tokenizer.decode([token])
    session.decode(token)
    return str(text)


class Turn:
    """The state of one reply.  Its generators do no steps: they say which token to let in."""

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
        self.was_full = False  # it ended because no more tokens were allowed
        self.perceived = 0  # tokens that came in between the answer's, while it was spoken
        self.ahead: deque[tuple[int, Tensor]] = deque()  # guesses in the memory, each with the logits behind it
        self.guessed = self.right = 0  # guesses let in, and those that the model chose too

    @property
    def fed(self) -> int:
        """How many of the answer's tokens were let in."""
        return self.session.tokens - self.start - len(self.ahead) - self.perceived

    @property
    def is_settled(self) -> bool:
        """Whether every token in the memory has delivered text: what comes in now need never be taken back."""
        return self.start >= 0 and self.keep >= self.fed and self.mark is None and not self.ahead

    def may_guess(self, most: int) -> int:
        """How many guesses may be let in behind the next token: none while a mark is open for other reasons."""
        left = self.sampling.max_new - len(self.tokens) - 1  # the last token of an answer is not let in
        return max(0, min(most, left)) if self.mark is None else 0

    def guess(self, guesses: int) -> None:
        """The next step lets in so many guesses behind its token: hold what they may overwrite."""
        if guesses:
            self.mark = self.session.mark(max_new=self.room + guesses)

    def learned(self, guesses: Sequence[int], logits: Tensor) -> None:
        """That step has ended, with logits [1 + guesses, V] behind the token and behind each guess."""
        self.session._logits = logits[0]
        self.ahead.extend(zip(guesses, logits[1:]))
        self.guessed += len(guesses)

    def _resolve(self, token: int) -> bool:
        """Whether a chosen token is in the memory already, as the next guess; if it is not, all guesses leave it."""
        if not self.ahead:
            return False
        if self.ahead[0][0] == token:
            self.right += 1
            self.session._logits = self.ahead.popleft()[1]
            return True
        self._drop_guesses()
        return False

    def _drop_guesses(self) -> None:
        """Take guesses out of the memory; the session is as if they had never been made."""
        if self.ahead:
            session, length = self.session, self.session.tokens - len(self.ahead)
            self.ahead.clear()
            session._memory.truncate(length, session.row)
            session.log.truncate(length)

    def _deliver(self, piece: str) -> str:
        self.delivered += len(piece)
        while self.keep < len(self.begins) and self.begins[self.keep] < self.delivered:
            self.keep += 1
        return piece

    def run(self) -> Iterator[str | Feed]:
        """Pieces of text as they become final, and the tokens to let in between them."""
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
            if stopped:
                break
            if len(self.tokens) == self.sampling.max_new:
                self.was_full = True
                break
            is_in = self._resolve(token)
            if not is_in:
                if not self._guard():
                    self.was_full = True
                    break
                yield Feed(token)
            logits = session.logits
            assert logits is not None
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
        if self.mark is not None and any(m is self.mark for m in self.session.marks.open):
            self.session.commit(self.mark)
        self.mark = None

    @property
    def room(self) -> int:
        """Tokens that may wait for text: bytes of a character, a possible stop string."""
        return ROOM + max((len(stop) for stop in self.sampling.stop), default=0)

    def settle(self) -> Iterator[Feed]:
        """Make the memory hold the delivered tokens, no more and no fewer."""
        if self.start < 0 or self.session._memory.rows[self.session.row].is_broken:
            return
        self._drop_guesses()
        if self.keep < self.fed:
            self.session.take_back(self.session.tokens - (self.fed - self.keep))
        for token in self.tokens[self.fed : self.keep]:
            yield Feed(token)
        self._unmark()
