"""The session object of the Realtime protocol: what may be set, and how an update is merged.  Pure.

Only fields that an update names are changed: objects are merged field by field, at any depth; null clears a field (one
that cannot be empty goes back to its default); an object whose `type` changes replaces the one before.  The result is
checked as a whole, and if it is refused nothing has changed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from penstock.serve.refusal import Refusal
from penstock.serve.wire import MOST_NEW, Body, checked

LONGEST_INSTRUCTIONS = 1 << 16  # characters
_READ_ONLY = frozenset({"id", "object", "expires_at"})  # a client may send back what it was shown
_DEAF = "no model here hears or speaks yet"

MaxTokens = Annotated[int, Field(ge=1, le=4096)] | Literal["inf"]
Modalities = list[Literal["text", "audio"]]
Metadata = Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)]


class AudioFormat(Body):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
    rate: int | None = None


class NoiseReduction(Body):
    type: Literal["near_field", "far_field"] | None = None
    strength: float | None = Field(None, ge=0, le=1)


class TurnDetection(Body):
    """Kept as it is told; it matters when there is sound."""

    type: Literal["server_vad", "semantic_vad"]
    create_response: bool | None = None
    interrupt_response: bool | None = None
    eagerness: Literal["low", "medium", "high", "auto"] | None = None
    idle_timeout_ms: int | None = Field(None, ge=0)
    prefix_padding_ms: int | None = Field(None, ge=0)
    silence_duration_ms: int | None = Field(None, ge=0)
    threshold: float | None = Field(None, ge=0, le=1)


class AudioIn(Body):
    format: AudioFormat | None = None
    noise_reduction: NoiseReduction | None = None
    transcription: dict[str, Any] | None = None
    turn_detection: TurnDetection | None = None


class AudioOut(Body):
    format: AudioFormat | None = None
    speed: float | None = Field(None, ge=0.25, le=1.5)
    voice: str | dict[str, Any] | None = None


class Audio(Body):
    """Settings of sound: taken and shown, without effect as long as only text goes in and out."""

    input: AudioIn | None = None
    output: AudioOut | None = None


class TokenLimits(Body):
    post_instructions: int | None = Field(None, ge=0)


class RetentionRatio(Body):
    type: Literal["retention_ratio"]
    retention_ratio: float = Field(ge=0, le=1)
    token_limits: TokenLimits | None = None


class SessionBody(Body):
    """All fields of a session that a client may set."""

    type: Literal["realtime"]
    model: str | None = None
    output_modalities: Modalities = Field(["text"])
    instructions: str = Field("", max_length=LONGEST_INSTRUCTIONS)
    max_output_tokens: MaxTokens = "inf"
    temperature: float = Field(0.0, ge=0, le=2)
    truncation: Literal["auto", "disabled"] | RetentionRatio = "auto"
    audio: Audio | None = None
    tools: list[dict[str, Any]] = Field([])
    tool_choice: str | dict[str, Any] = "auto"
    tracing: Literal["auto"] | dict[str, Any] | None = None
    include: list[str] | None = None
    prompt: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None


def first_session(id: str, model: str) -> dict[str, Any]:
    """The session of a new connection."""
    audio = {
        "input": {"format": None, "noise_reduction": None, "transcription": None, "turn_detection": None},
        "output": {"format": None, "speed": None, "voice": None},
    }
    return {
        "id": id, "object": "realtime.session", "type": "realtime", "model": model, "output_modalities": ["text"],
        "instructions": "", "max_output_tokens": "inf", "temperature": 0.0, "truncation": "auto", "audio": audio,
        "tools": [], "tool_choice": "auto", "tracing": None, "include": None, "prompt": None, "expires_at": None,
    }  # fmt: skip


def merged(old: Any, new: Any) -> Any:
    """`new` over `old`: field by field where both are objects of one type, else the new one alone."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    if "type" in old and "type" in new and old["type"] != new["type"]:
        return new
    return {**old, **{name: merged(old.get(name), value) for name, value in new.items()}}


def updated(session: dict[str, Any], update: Any) -> dict[str, Any]:
    """The session after an update, or a Refusal and nothing changed."""
    if not isinstance(update, dict):
        raise Refusal("session is not an object: send the fields to change.", param="session", code="invalid_type")
    if "type" not in update:
        raise Refusal('session.type is missing: send "realtime".', param="session.type", code=_MISSING)
    if update["type"] != "realtime":
        raise Refusal('this is a session of type "realtime": leave its type.', param="session.type", code=_INVALID)
    told = {name: value for name, value in update.items() if name not in _READ_ONLY}
    if told.get("model", session["model"]) not in (session["model"], None):
        raise Refusal("the model cannot be changed: connect with another one.", param="session.model", code=_INVALID)
    told.pop("model", None)
    result = merged({name: value for name, value in session.items() if name not in _READ_ONLY}, told)
    for name, value in list(result.items()):
        field = SessionBody.model_fields.get(name)
        if value is None and field is not None and field.default is not None and not field.is_required():
            result[name] = field.default
    try:
        checked(SessionBody, result)
    except Refusal as refusal:
        refusal.param = f"session.{refusal.param}" if refusal.param else "session"
        raise
    check_served(result, "session")
    return {**{name: session[name] for name in ("id", "object")}, **result, "expires_at": session["expires_at"]}


def check_served(told: dict[str, Any], where: str) -> None:
    """What would have to change the answer and cannot is refused by name."""
    if told.get("output_modalities") not in (None, ["text"]):
        raise Refusal(
            f'{_DEAF}: set output_modalities to ["text"].', param=f"{where}.output_modalities", code=UNSUPPORTED
        )
    for name, nothing in (("tools", ([], None)), ("tool_choice", ("auto", "none", None)), ("prompt", (None,))):
        if told.get(name) not in nothing:
            raise Refusal(f"{name} is not served here: leave it out.", param=f"{where}.{name}", code=_PARAMETER)


def most_new(value: int | str) -> int:
    """Tokens that an answer may have."""
    return MOST_NEW if value == "inf" else min(int(value), MOST_NEW)


_MISSING, _INVALID, _PARAMETER = "missing_required_parameter", "invalid_value", "unsupported_parameter"
UNSUPPORTED = "unsupported_modality"
DEAF = f"{_DEAF}: send text, as a conversation.item.create with content of type input_text."
