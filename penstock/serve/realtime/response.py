"""One response of the Realtime protocol: its parameters, its state, and its events in their order.  Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from penstock.serve.realtime.config import LONGEST_INSTRUCTIONS, Audio, MaxTokens, Metadata, Modalities
from penstock.serve.realtime.items import Item
from penstock.serve.refusal import Refusal
from penstock.serve.wire import Body

Event = dict[str, Any]


class ResponseBody(Body):
    """The parameters of response.create."""

    conversation: str | None = None
    input: list[dict[str, Any]] | None = Field(None, max_length=1000)
    instructions: str | None = Field(None, max_length=LONGEST_INSTRUCTIONS)
    max_output_tokens: MaxTokens | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    metadata: Metadata | None = None
    output_modalities: Modalities | None = None
    audio: Audio | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None


@dataclass
class Response:
    """An answer under way."""

    id: str
    item: Item
    conversation_id: str | None  # None: it is not written to the conversation
    max_output_tokens: int | str
    metadata: dict[str, str] | None = None
    is_inside: bool = True  # its item stands in the conversation while it is spoken
    status: str = "in_progress"
    details: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    input_tokens: int = 0
    cached_tokens: int = 0
    began: float = 0.0  # seconds, when its first piece was said
    is_cancelled: bool = False
    where: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.where = {"response_id": self.id, "item_id": self.item.id, "output_index": 0, "content_index": 0}

    @property
    def _at(self) -> dict[str, Any]:
        return {"response_id": self.id, "output_index": 0}

    def document(self) -> dict[str, Any]:
        """The response resource."""
        return {
            "object": "realtime.response", "id": self.id, "status": self.status, "status_details": self.details,
            "output": [] if self.status == "in_progress" else [self.item.document()],
            "conversation_id": self.conversation_id, "output_modalities": ["text"],
            "max_output_tokens": self.max_output_tokens, "usage": self.usage, "metadata": self.metadata,
        }  # fmt: skip

    def begin(self, rate_limits: list[dict[str, Any]], previous: str | None) -> Iterator[Event]:
        """Before the first piece."""
        yield {"type": "response.created", "response": self.document()}
        yield {"type": "rate_limits.updated", "rate_limits": rate_limits}
        empty = self.item.document(is_empty=True)
        yield {"type": "response.output_item.added", **self._at, "item": empty}
        if self.is_inside:
            yield {"type": "conversation.item.added", "previous_item_id": previous, "item": empty}
        yield {"type": "response.content_part.added", **self.where, "part": {"type": "text", "text": ""}}

    def piece(self, text: str, now: float) -> Event:
        """Some text of the answer."""
        if not self.item.times:
            self.began = now
        self.item.said(text, round((now - self.began) * 1e3))
        return {"type": "response.output_text.delta", **self.where, "delta": text}

    def end(self, previous: str | None) -> Iterator[Event]:
        """Behind the last piece; the status is known."""
        text = self.item.text
        yield {"type": "response.output_text.done", **self.where, "text": text}
        yield {"type": "response.content_part.done", **self.where, "part": {"type": "text", "text": text}}
        if self.conversation_id is not None:
            if not self.is_inside:
                added = self.item.document(is_empty=True)
                yield {"type": "conversation.item.added", "previous_item_id": previous, "item": added}
            done = self.item.document()
            yield {"type": "conversation.item.done", "previous_item_id": previous, "item": done}
        yield {"type": "response.output_item.done", **self._at, "item": self.item.document()}
        yield {"type": "response.done", "response": self.document()}

    def finish(self, reason: str, tokens: int) -> None:
        """How it ended: stop, length or cancelled."""
        self.status = {"stop": "completed", "length": "incomplete"}.get(reason, "cancelled")
        if self.status == "incomplete":
            self.details = {"type": "incomplete", "reason": "max_output_tokens"}
        elif self.status == "cancelled":
            self.details = {"type": "cancelled", **({"reason": "client_cancelled"} if self.is_cancelled else {})}
        self.item.status = "completed" if self.status == "completed" else "incomplete"
        self._count(tokens)

    def fail(self, refusal: Refusal) -> None:
        """It broke off."""
        self.status, self.item.status = "failed", "incomplete"
        error = {"type": refusal.kind, "code": refusal.code, "message": str(refusal)}
        self.details = {"type": "failed", "error": error}
        self._count(0)

    def _count(self, tokens: int) -> None:
        none = {"audio_tokens": 0, "image_tokens": 0}
        self.usage = {
            "total_tokens": self.input_tokens + tokens, "input_tokens": self.input_tokens, "output_tokens": tokens,
            "input_token_details": {
                "text_tokens": self.input_tokens, **none, "cached_tokens": self.cached_tokens,
                "cached_tokens_details": {"text_tokens": self.cached_tokens, **none},
            },
            "output_token_details": {"text_tokens": tokens, "audio_tokens": 0},
        }  # fmt: skip
