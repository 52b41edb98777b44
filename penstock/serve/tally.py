"""How many tokens a stream will have when all that is durable has been read, known without the model.

A session's tokens follow from its input alone: what is fed, where questions flush, how turns are wrapped, how many
tokens each answer kept.  The tally repeats that bookkeeping (session.py, reply.py), so a server can tell the length of
a stream before the model has read it.  Free of I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.models.chat import Turns, turns
from penstock.models.text import TextEncoder


class Tally:
    """Counts the tokens of one stream; the state is JSON."""

    def __init__(self, tokenizer: Any, state: dict[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self._encoder = TextEncoder(tokenizer)
        self._turns: Turns | None = turns(tokenizer)
        self.tokens = 0
        self.bytes = 0  # ever appended
        self._in_answer = False
        self._turns_from: int | None = None
        self.said = ""  # how the last message ended (realtime/script.py)
        if state is not None:
            self.load_state_dict(state)

    @property
    def held(self) -> int:
        """Bytes that wait for later text."""
        return self._encoder.pending

    def append(self, data: bytes) -> None:
        """Text was appended."""
        self.bytes += len(data)
        self.tokens += len(self._encoder.feed(data))

    def flushed(self) -> list[int]:
        """What was held back is settled, because token ids follow; returns those that begin the stream, if it does."""
        before, ids = self.tokens, self._encoder.flush()
        self.tokens += len(ids)
        return ids if before == 0 and ids == list(self._encoder.prefix_ids) else []

    def say(self, ids: Sequence[int]) -> int:
        """Token ids of a message follow; returns the length behind them."""
        self.tokens += len(ids)
        return self.tokens

    def ask(self, question: str | None, raw: bool) -> int:
        """A question was put; returns how many tokens it added, what was held back included."""
        before = self.tokens
        self.tokens += len(self._encoder.flush())
        around = None if raw else self._turns
        if question is not None and around is not None:
            if self._turns_from is None:
                self._turns_from = self.tokens
            self.tokens += self._count(around.between if self._in_answer else around.opening)
            self.tokens += len(self._encoder.feed(question) + self._encoder.flush()) + self._count(around.asking)
            self._in_answer, self.said = True, "answered"
        elif question is not None:
            self.tokens += len(self._encoder.feed(question) + self._encoder.flush())
        return self.tokens - before

    def _count(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer(self, kept: int) -> None:
        """An answer kept so many tokens."""
        self.tokens += kept

    def truncate(self, length: int) -> None:
        """The stream was cut to `length` tokens; what was held back is dropped."""
        if length == 0:
            self.said = ""
        if length == 0 < self.tokens:
            self._encoder = TextEncoder(self._tokenizer)
            self._in_answer, self._turns_from = False, None
        elif length < self.tokens and self._turns_from is not None and length <= self._turns_from:
            self._in_answer, self._turns_from = False, None
        self.tokens = length
        state = self._encoder.state_dict()
        has_text = state["has_text"] and length > len(self._encoder.prefix_ids)
        self._encoder.load_state_dict({**state, "text": "", "bytes": "", "has_text": has_text})

    def state_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "tokens": self.tokens,
            "bytes": self.bytes,
            "turn": [self._in_answer, self._turns_from],
            "said": self.said,
            "encoder": self._encoder.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of state_dict."""
        self.tokens, self.bytes = int(state["tokens"]), int(state["bytes"])
        self._in_answer, self._turns_from = bool(state["turn"][0]), state["turn"][1]
        self.said = state.get("said", "")
        self._encoder.load_state_dict(state["encoder"])
