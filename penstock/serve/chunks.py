"""Answers in OpenAI's shapes, whole and as server-sent events.  Free of I/O: pieces in, documents out."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

DONE = b"data: [DONE]\n\n"


def event(document: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


@dataclass
class Usage:
    """Tokens that went in and came out."""

    prompt: int = 0
    completion: int = 0

    def document(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


@dataclass
class Shape(ABC):
    """One answer (or `n` of them) under one id; subclasses say where the text stands."""

    id: str
    model: str
    created: int  # seconds since 1970
    wants_usage: bool = False
    usage: Usage = field(default_factory=Usage)
    texts: dict[int, str] = field(default_factory=dict)  # what `whole` will say, by choice
    reasons: dict[int, str] = field(default_factory=dict)

    def begin(self, index: int) -> list[dict[str, Any]]:
        """Before the first piece of a choice."""
        self.texts[index] = ""
        return []

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """A piece of text."""
        self.texts[index] += text
        return self._chunk([self._part(index, text, None)])

    def finish(self, index: int, reason: str) -> dict[str, Any]:
        """A choice is over: `stop` or `length`."""
        self.reasons[index] = reason
        return self._chunk([self._part(index, "", reason)])

    def end(self) -> list[dict[str, Any]]:
        """Behind the last choice: the usage, if it was asked for."""
        return [{**self._chunk([]), "usage": self.usage.document()}] if self.wants_usage else []

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self.wants_usage else {}
        return {**self._head(True), "choices": choices, **usage}

    def whole(self) -> dict[str, Any]:
        """The answer in one document."""
        choices = [self._choice(index, self.texts[index], self.reasons[index]) for index in sorted(self.texts)]
        return {**self._head(False), "choices": choices, "usage": self.usage.document()}

    @abstractmethod
    def _head(self, is_chunk: bool) -> dict[str, Any]:
        """What a chunk and a whole document begin with."""

    @abstractmethod
    def _part(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        """A piece of a choice; without a reason while it goes on."""

    @abstractmethod
    def _choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        """A choice in the whole document."""


class Chat(Shape):
    """chat.completion and chat.completion.chunk."""

    def begin(self, index: int) -> list[dict[str, Any]]:
        super().begin(index)
        delta = {"role": "assistant", "content": ""}
        return [self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])]

    def _head(self, is_chunk: bool) -> dict[str, Any]:
        kind = "chat.completion.chunk" if is_chunk else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _part(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        delta = {"content": text} if reason is None else {}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}

    def _choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}


class Text(Shape):
    """text_completion."""

    def _head(self, is_chunk: bool) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}

    def _part(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}

    def _choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        return self._part(index, text, reason)
