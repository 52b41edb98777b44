"""How messages stand in a stream: the words of the chat template around them, one message at a time.  Pure.

    [opening] user ... user [asking] answer [between] user ... [asking] answer

Messages of users and of the system that follow one another share a turn.  Without a chat template a line end stands
between messages, as in prompt.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from penstock.models.chat import Turns
from penstock.models.text import TextEncoder

NOTHING, ASKED, ANSWERED = "", "asked", "answered"  # what stands at the end of the stream


class Part(NamedTuple):
    """A piece of text; `special`: it is the template's, `follows`: it goes on behind other text."""

    text: str
    special: bool = False
    follows: bool = False


class Placed(NamedTuple):
    """Where groups of parts came to stand: tokens of the stream before the first, and behind each.

    `answers`: how many answers had been counted by then; the tokens of one under way are not.
    """

    start: int
    ends: list[int]
    answers: int


class Script:
    """Writes messages; `state` is what stands at the end so far."""

    def __init__(self, turns: Turns | None, state: str = NOTHING) -> None:
        self.turns, self.state = turns, state

    def message(self, role: str, text: str) -> list[Part]:
        """What a message of `user`, `system` or `assistant` puts behind the stream."""
        parts = self._begin(role)
        follows = bool(parts) and not parts[-1].special
        self.state = ANSWERED if role == "assistant" else ASKED
        return [*parts, Part(text, False, follows)]

    def _begin(self, role: str) -> list[Part]:
        is_first, turns = self.state == NOTHING, self.turns
        if turns is not None and role == "assistant" and self.state == ASKED:
            return [Part(turns.asking, True)]
        if turns is not None and role != "assistant" and self.state != ASKED:
            return [Part(turns.opening if is_first else turns.between, True)]
        return [] if is_first else [Part("\n", False, True)]

    def answer(self, text: str = "") -> list[Part]:
        """What stands before an answer of the model, then the answer, which follows without a line end."""
        parts = [Part(self.turns.asking, True)] if self.turns is not None and self.state == ASKED else []
        follows = not parts and self.state != NOTHING
        self.state = ANSWERED
        return [*parts, *([Part(text, False, follows)] if text else [])]


def ids_of(tokenizer: Any, parts: Sequence[Sequence[Any]]) -> list[int]:
    """The token ids of parts; what people wrote never becomes a special token."""
    ids: list[int] = []
    for text, special, follows in parts:
        if special:
            ids += tokenizer(text, add_special_tokens=False)["input_ids"]
            continue
        encoder = TextEncoder(tokenizer, bos=False)
        if follows:
            encoder.load_state_dict({**encoder.state_dict(), "has_text": True})
        ids += encoder.feed(text) + encoder.flush()
    return ids
