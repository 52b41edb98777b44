"""An answer under way, between the engine and whoever asked: pieces go one way, the wish to end it the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finished:
    """An answer is over, and durable: `reason` is stop, length or cancelled."""

    reason: str
    question_tokens: int
    tokens: int
    kept: int = 0  # tokens of the answer that stay in the stream
    answers: int = 0  # of the session by then


Deliver = Callable[[str | Finished | BaseException], None]


class Asked:
    """An answer under way; its pieces go to `deliver` until somebody lets go of it."""

    def __init__(self, deliver: Deliver | None) -> None:
        self.deliver = deliver
        self.answer: Any = None
        self.is_ended = False

    def take(self, answer: Any) -> None:
        """The answer that the engine gives; ended at once if that was wished before there was one."""
        self.answer = answer
        if self.is_ended:
            answer.cancel()

    def cancel(self) -> None:
        """End it where it is; nobody listens any more."""
        self.deliver = None
        self.end()

    def end(self) -> None:
        """End it where it is: the stream keeps what was put out."""
        self.is_ended = True
        if self.answer is not None:
            self.answer.cancel()

    def read(self) -> Finished:
        """Hand over all pieces; returns how it ended."""
        for piece in self.answer:
            self.tell(piece)
        return Finished(str(self.answer.finish), self.answer.question_tokens, self.answer.tokens)

    def tell(self, event: str | Finished | BaseException) -> None:
        """Hand something to the reader, if there still is one."""
        deliver = self.deliver
        if deliver is not None:
            deliver(event)
