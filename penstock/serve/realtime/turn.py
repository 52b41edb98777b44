"""What a response.create asks for, checked.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from penstock.serve.realtime.config import check_served, most_new
from penstock.serve.realtime.items import Items, message_of
from penstock.serve.realtime.response import ResponseBody
from penstock.serve.refusal import Refusal
from penstock.serve.wire import checked


@dataclass(frozen=True)
class Wanted:
    """One response: `messages` (role, text) are all its context, None: the conversation is."""

    is_written: bool  # to the conversation
    messages: Sequence[tuple[str, str]] | None
    instructions: str
    sampling: dict[str, Any]
    max_output_tokens: int | str
    metadata: dict[str, str] | None

    def conversation_id(self, session_id: str) -> str | None:
        return f"conv_{session_id.removeprefix('sess_')}" if self.is_written else None


def wanted(told: Any, session: dict[str, Any], items: Items) -> Wanted:
    """The parameters of a response; what it does not say, the session does."""
    try:
        body = checked(ResponseBody, {} if told is None else told)
    except Refusal as refusal:
        refusal.param = f"response.{refusal.param}" if refusal.param else "response"
        raise
    check_served(told or {}, "response")
    if body.conversation not in (None, "auto", "none"):
        raise Refusal(
            'conversation is not "auto" or "none": choose one.', param="response.conversation", code="invalid_value"
        )
    instructions = session["instructions"] if body.instructions is None else body.instructions
    most = session["max_output_tokens"] if body.max_output_tokens is None else body.max_output_tokens
    messages = None
    if body.input is not None:
        messages = [("system", instructions)] if instructions else []
        messages += [_message(value, index, items) for index, value in enumerate(body.input)]
        if not messages:
            raise Refusal("input is empty: send an item to answer.", param="response.input", code="invalid_value")
    sampling = {
        "max_new": most_new(most), "top_k": 0, "top_p": 1.0, "stop": (), "seed": 0,
        "temperature": session["temperature"] if body.temperature is None else body.temperature,
    }  # fmt: skip
    return Wanted(body.conversation != "none", messages, instructions, sampling, most, body.metadata)


def _message(value: dict[str, Any], index: int, items: Items) -> tuple[str, str]:
    where = f"response.input.{index}"
    if value.get("type") == "item_reference":
        item = items.all[items.find(value.get("id"), f"{where}.id")]
        return item.role, item.text
    message = message_of(value, where)
    return message.role, message.text
