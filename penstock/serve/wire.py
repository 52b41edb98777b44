"""The bodies of requests, checked field by field.  Free of I/O.

Unknown fields are refused, as everywhere in penstock.  Fields of OpenAI's interface that change nothing here are taken
and ignored; those that would have to change the answer and cannot are refused by name.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from penstock.serve.refusal import Refusal

MOST_NEW = 4000  # tokens of one answer; the log of a session must still hold them when it ends
DEFAULT_NEW = 128

_IGNORED = frozenset(
    {
        "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "reasoning_effort",
        "safety_identifier", "service_tier", "store", "user", "verbosity",
    }
)  # fmt: skip
# field -> values that ask for nothing
_UNSERVED: dict[str, tuple[Any, ...]] = {
    "audio": (None,), "best_of": (None, 1), "echo": (None, False), "frequency_penalty": (None, 0),
    "functions": (None, []),
    "function_call": (None, "none", "auto"), "logit_bias": (None, {}), "logprobs": (None, False),
    "modalities": (None, ["text"]), "prediction": (None,), "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}), "suffix": (None, ""), "tool_choice": (None, "none", "auto"),
    "tools": (None, []), "top_logprobs": (None, 0), "web_search_options": (None,),
}  # fmt: skip


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else [] if value is None else value


Stop = Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=8)]
T = TypeVar("T", bound=BaseModel)


class Body(BaseModel):
    """Base of all bodies."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False  # taken, not done: lengths of pieces are no secret on this machine


class Sampled(Body):
    """How an answer is chosen."""

    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: Annotated[Stop, BeforeValidator(_listed)] = []
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=1, le=MOST_NEW)

    @property
    def wants_usage(self) -> bool:
        """Whether a last chunk with the usage was asked for."""
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a chat; only text can be read yet."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None

    @property
    def text(self) -> str:
        """All of its text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatBody(Sampled):
    """POST /v1/chat/completions."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=10_000)
    n: int | None = Field(1, ge=1, le=8)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_NEW)


class CompletionBody(Sampled):
    """POST /v1/completions."""

    model: str
    prompt: str | list[str] | list[int] | list[list[int]]
    n: int | None = Field(1, ge=1, le=8)


class CreateBody(Body):
    """POST /v1/sessions."""

    id: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


class AskBody(Sampled):
    """POST /v1/sessions/{id}/ask: without a question the model goes on."""

    question: str | None = Field(None, min_length=1)
    stream: bool | None = True
    raw: bool = False  # not wrapped in the turns of a chat template
    remember: bool = True  # False: on a fork that is dropped
    deadline: float | None = Field(None, gt=0)  # seconds; what there is of the answer by then is all of it
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_NEW)


class ForkBody(Body):
    """POST /v1/sessions/{id}/fork."""

    id: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


class TruncateBody(Body):
    """POST /v1/sessions/{id}/truncate."""

    tokens: int = Field(ge=0)


class EmptyBody(Body):
    """POST /v1/sessions/{id}/save."""


def whole_text(data: str | bytes, value: Any) -> None:
    """Raise ValueError if JSON has half a surrogate pair in a string: it is no text and could not be sent back."""
    escape = "\\\\u[dD][89a-fA-F]"
    if re.search(escape, data) if isinstance(data, str) else re.search(escape.encode(), data):
        json.dumps(value, ensure_ascii=False).encode()


def checked(kind: type[T], value: Any) -> T:
    """A body from JSON, or the refusal that names the first wrong field."""
    if not isinstance(value, dict):
        raise Refusal("the body is not a JSON object: send one, with content-type application/json.")
    fields = kind.model_fields
    if issubclass(kind, Sampled):
        for name, nothing in _UNSERVED.items():
            if name in value and name not in fields:
                if not any(value[name] == idle for idle in nothing):
                    raise Refusal(f"{name} is not served here: leave it out.", param=name, code="unsupported_parameter")
                value = {k: v for k, v in value.items() if k != name}
        value = {k: v for k, v in value.items() if k not in _IGNORED}
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or None
        code = {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter"}.get(first["type"])
        what = {"extra_forbidden": "is not known", "missing": "is missing"}.get(first["type"], first["msg"].lower())
        raise Refusal(
            f"{where or 'the body'}: {what}: see docs/protocol.md.", param=where, code=code or "invalid_value"
        ) from None
