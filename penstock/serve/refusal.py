"""What a request is refused with: an HTTP status and OpenAI's error shape.  Free of I/O."""

from __future__ import annotations

from typing import Any

from penstock.errors import (
    ContextFull,
    MemoryStateError,
    OutputError,
    Overloaded,
    PenstockError,
    SnapshotError,
    UsageError,
)

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class Refusal(PenstockError):
    """A request that is not served: one sentence with the fix, a status, and what it is about."""

    def __init__(
        self, sentence: str, status: int = 400, *, param: str | None = None, code: str | None = None,
        retry_after: float | None = None, facts: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(sentence)
        self.status, self.param, self.code = status, param, code
        self.retry_after = retry_after  # seconds
        self.facts = facts or {}  # what was done in spite of it, beside the error

    @property
    def kind(self) -> str:
        return _KINDS.get(self.status, "server_error")

    def document(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error, **self.facts}


def stopping() -> Refusal:
    """The server is ending."""
    return Refusal("the server is stopping: try again when it is back.", 503, code="draining", retry_after=5)


def refusal_of(error: BaseException) -> Refusal:
    """Any failure as a refusal; what nobody foresaw is a 500 that tells its kind and nothing of the inside."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ContextFull):
        return Refusal(str(error), 400, code="context_length_exceeded")
    if isinstance(error, MemoryStateError):
        return Refusal(str(error), 409, code="not_exact")
    if isinstance(error, Overloaded):
        return Refusal(str(error), 503, code="overloaded", retry_after=1)
    if isinstance(error, UsageError):
        return Refusal(str(error), 400)
    if isinstance(error, OutputError):
        return Refusal(str(error), 507, code="insufficient_storage")
    if isinstance(error, SnapshotError):
        return Refusal(str(error), 500, code="snapshot")
    if isinstance(error, PenstockError):
        return Refusal(str(error), 500)
    if isinstance(error, MemoryError):
        return Refusal("the server is out of memory: try again with less, or later.", 503, retry_after=5)
    return Refusal(f"the server failed ({type(error).__name__}): try again, and tell its operator.", 500)
