"""An answer under way, from the engine's side: a turn (reply.py) whose tokens are let in by packed steps."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.engine.inbox import Question
from penstock.engine.records import Finish
from penstock.reply import Feed, Turn, begin
from penstock.session import Session


class Speaking:
    """Runs the turn between steps: `feed` is the token that the next step must let in, None when it is over."""

    def __init__(self, core: Session, question: Question) -> None:
        self.answer = question.answer
        self.core = core
        begin(core, question.has_turn)
        self.turn = Turn(core, question.sampling)
        self.feed: int | None = None
        self.finish: Finish | None = None  # known when the turn is being settled
        self.is_over = False
        self._items: Iterator[str | Feed] = self.turn.run()
        self._last: float | None = None  # when the newest piece was put out
        core._replying = True

    @property
    def is_pinned(self) -> bool:
        """Whether a mark is open in the row."""
        return self.turn.mark is not None

    @property
    def left(self) -> int:
        """Tokens that may still come."""
        return self.turn.sampling.max_new - len(self.turn.tokens)

    def cut(self, finish: Finish) -> None:
        """End the turn; what nobody was given is taken back at the next `advance`."""
        if self.finish is None:
            self.finish, self.feed = finish, None
            self._items = self.turn.settle()

    def advance(self, now: float) -> None:
        """Go on to the next token to let in; needs the row."""
        self.feed = None
        while not self.is_over:
            item = next(self._items, None)
            if isinstance(item, Feed):
                self.feed = item.token
                break
            if item is not None:
                self.answer.put(item)
                self.answer.cadence.piece(self.answer.asked, self._last, now)
                self._last = now
            elif self.finish is None:
                self.cut(Finish.LENGTH if self.turn.was_full else Finish.STOP)
            else:
                self._end(now)
        self.answer.tokens = len(self.turn.tokens)

    def _end(self, now: float) -> None:
        assert self.finish is not None
        self.is_over, self.core._replying = True, False
        self.answer.tokens = len(self.turn.tokens)
        self.answer.said = tuple(self.turn.tokens[: self.turn.keep])
        self.answer.end(self.finish, now)

    def fail(self, error: BaseException, now: float) -> None:
        """The row is lost."""
        self.is_over, self.core._replying = True, False
        self.answer.end(Finish.ERROR, now, error)
