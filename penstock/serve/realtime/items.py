"""The conversation of a Realtime connection: its newest items, and where each stands in the stream.  Pure.

    stream   ...|  item  |  item  |........          an item stands in [start, end); None: not in the stream any more
                start   end = start of the next

The list is bounded: what was said long ago is forgotten here as it is in the memory.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from penstock.serve.realtime.config import DEAF, UNSUPPORTED
from penstock.serve.refusal import Refusal
from penstock.serve.wire import Body, checked

MOST_ITEMS = 1000
MOST_TEXT = 4 << 20  # characters of all items
_TIMED = 8  # answers of which it is known when each piece was said


class Content(Body):
    type: Literal["input_text", "output_text", "text"]
    text: str


class Message(Body):
    """An item that a client makes."""

    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    content: list[Content] = Field(min_length=1, max_length=1000)
    id: str | None = Field(None, min_length=1, max_length=64)
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)


def message_of(value: Any, where: str) -> Message:
    """A message from JSON; sound and pictures are refused with what to do instead."""
    if not isinstance(value, dict):
        raise Refusal(f"{where} is not an object: send a message.", param=where, code="invalid_type")
    if value.get("type") in ("function_call", "function_call_output") or str(value.get("type")).startswith("mcp_"):
        raise Refusal("tools are not served here: send messages.", param=f"{where}.type", code="unsupported_parameter")
    content = value.get("content")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_audio", "input_image", "output_audio", "audio"):
            raise Refusal(DEAF, param=f"{where}.content.{index}.type", code=UNSUPPORTED)
    try:
        message = checked(Message, value)
    except Refusal as refusal:
        refusal.param = f"{where}.{refusal.param}" if refusal.param else where
        raise
    wanted = "output_text" if message.role == "assistant" else "input_text"
    for index, part in enumerate(message.content):
        if part.type not in (wanted, "text"):
            raise Refusal(
                f"content of {message.role} messages has type {wanted}: use that.",
                param=f"{where}.content.{index}.type", code="invalid_value",
            )  # fmt: skip
    return message


@dataclass
class Item:
    """One message of the conversation."""

    id: str
    role: str
    text: str
    status: str = "completed"
    before: str = ""  # the state of the script before it
    start: int | None = None
    end: int | None = None
    answers: int = 0  # how many answers are counted in start and end
    is_spoken: bool = False  # an answer of the model
    is_hidden: bool = False  # instructions
    times: list[int] = field(default_factory=list)  # of an answer: when its pieces were said, ms from the first
    sizes: list[int] = field(default_factory=list)  # and its characters by then

    def document(self, is_empty: bool = False) -> dict[str, Any]:
        kind = "output_text" if self.role == "assistant" else "input_text"
        content = [] if is_empty else [{"type": kind, "text": self.text}]
        return {
            "id": self.id, "object": "realtime.item", "type": "message", "status": self.status, "role": self.role,
            "content": content,
        }  # fmt: skip

    def said(self, piece: str, ms: int) -> None:
        """A piece of an answer was put out."""
        self.text += piece
        self.times.append(ms)
        self.sizes.append(len(self.text))

    def heard(self, ms: int) -> str:
        """The text that had been put out `ms` after the first piece."""
        at = bisect.bisect_right(self.times, ms)
        return self.text[: self.sizes[at - 1]] if at else ""


class Items:
    """The items in order, newest last."""

    def __init__(self, most_items: int = MOST_ITEMS, most_text: int = MOST_TEXT) -> None:
        self.most_items, self.most_text = most_items, most_text
        self.all: list[Item] = []

    def find(self, id: Any, param: str = "item_id") -> int:
        """Where an item is."""
        if not isinstance(id, str):
            raise Refusal(f"{param} is not a string: send the id of an item.", param=param, code="invalid_value")
        for index in range(len(self.all) - 1, -1, -1):
            if self.all[index].id == id and not self.all[index].is_hidden:
                return index
        raise Refusal(
            f"there is no item {id[:64]!r} in the conversation, or not any more: use a newer one.", 404, param=param,
            code="item_not_found",
        )  # fmt: skip

    def has(self, id: str) -> bool:
        return any(item.id == id for item in self.all)

    def id_before(self, index: int) -> str | None:
        """The id of the visible item in front of a place."""
        return next((item.id for item in reversed(self.all[:index]) if not item.is_hidden), None)

    def insert(self, index: int, item: Item) -> None:
        """Put an item at a place."""
        self.all.insert(index, item)
        self.trim()

    def trim(self) -> None:
        """Forget the oldest items beyond the bounds."""
        text = sum(len(each.text) for each in self.all)
        while len(self.all) > 1 and (len(self.all) > self.most_items or text > self.most_text):
            text -= len(self.all.pop(0).text)
        for old in [each for each in self.all if each.times][:-_TIMED]:
            old.times, old.sizes = [], []
