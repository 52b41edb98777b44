"""The turns of a chat template as text before, between and after what people say.

A template is rendered with markers in place of the messages, and cut at the markers:

    [opening] U1 [asking] A1 [between] U2 [asking] A2 ...

so that an endless conversation never has to be rendered whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_U1, _A1, _U2 = "(first-user-turn)", "(first-answer-turn)", "(second-user-turn)"


@dataclass(frozen=True)
class Turns:
    """Text around messages; special tokens are written out and are to be read as such."""

    opening: str  # before the first question, without the token that begins the stream
    asking: str  # behind a question: ends its turn and begins the answer
    between: str  # behind an answer: ends its turn and begins the next question


def turns(tokenizer: Any) -> Turns | None:
    """The turns of a tokenizer's chat template; None when it has none that can be cut."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    messages = [
        {"role": "user", "content": _U1},
        {"role": "assistant", "content": _A1},
        {"role": "user", "content": _U2},
    ]
    try:
        whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        first = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    except Exception:  # templates are programs of their authors and raise what they like
        return None
    if not all(marker in whole for marker in (_U1, _A1, _U2)) or _U1 not in first:
        return None
    opening, asking = first.split(_U1, 1)
    between = whole.split(_A1, 1)[1].split(_U2, 1)[0]
    bos = getattr(tokenizer, "bos_token", None)
    if bos and opening.startswith(bos):
        opening = opening[len(bos) :]
    return Turns(opening, asking, between)
