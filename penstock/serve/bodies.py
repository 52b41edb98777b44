"""What is appended to a session, decoded while it arrives.  Free of I/O; holds at most one line.

decoder.push(data) -> bytes of the stream that are complete;  decoder.end() -> the rest, or a Refusal
"""

from __future__ import annotations

import json
import re

from penstock.serve.refusal import Refusal

LONGEST_LINE = 1 << 20  # bytes
_SURROGATE = re.compile("[\ud800-\udfff]")
_LINES = ("application/x-ndjson", "application/jsonl", "application/json-lines", "application/jsonlines")


class RawText:
    """Bytes as they come; a character may be cut anywhere, also between two requests."""

    def push(self, data: bytes) -> bytes:
        return data

    def end(self) -> bytes:
        return b""


class JsonLines:
    """One JSON document per line: a string, or an object whose `text` is one.  Nothing is put between them."""

    def __init__(self, longest: int = LONGEST_LINE) -> None:
        self.longest = longest
        self.lines = 0  # taken so far
        self._held = bytearray()

    def push(self, data: bytes) -> bytes:
        self._held += data
        whole: list[bytes] = []
        if b"\n" in data:
            *whole, rest = bytes(self._held).split(b"\n")
            self._held = bytearray(rest)
        out = bytearray()
        try:
            for line in whole:
                out += self._text(line)
            self._check_length(len(self._held))
        except Refusal as refusal:
            raise BadLine(refusal, bytes(out)) from None
        return bytes(out)

    def end(self) -> bytes:
        line, self._held = bytes(self._held), bytearray()
        return self._text(line)

    def _check_length(self, size: int) -> None:
        if size > self.longest:
            number = self.lines + 1
            raise Refusal(f"line {number} is longer than {self.longest} bytes: send shorter lines, or raw text.", 413)

    def _text(self, line: bytes) -> bytes:
        if not line.strip():
            return b""
        self._check_length(len(line))
        number = self.lines + 1
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise Refusal(f"line {number} is not JSON: send one JSON document per line.", code="invalid_json") from None
        if isinstance(value, dict) and set(value) == {"text"}:
            value = value["text"]
        if not isinstance(value, str):
            raise Refusal(f'line {number} has no text: send a string or {{"text": "..."}}.', code="invalid_json")
        self.lines = number
        return _SURROGATE.sub("\ufffd", value).encode()


class BadLine(Exception):
    """A line that cannot be read; `before` is the text of the lines in front of it."""

    def __init__(self, refusal: Refusal, before: bytes) -> None:
        super().__init__(str(refusal))
        self.refusal, self.before = refusal, before


def decoder_for(content_type: str) -> RawText | JsonLines:
    """The decoder that a content type asks for; everything that is not JSON lines is text."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        raise Refusal(
            "append takes text/plain or application/x-ndjson, not application/json: choose one as content-type.", 415
        )
    return JsonLines() if kind in _LINES else RawText()
