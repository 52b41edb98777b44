"""Connections that are broken in every way, from a seed.  A case is bytes to send, in pieces, and how to leave.

whole     good requests, answered or left
garbled   bytes changed, cut, doubled, put into another order
lying     lengths, chunks and headers that are wrong
bodies    JSON that is not, and JSON of the wrong kinds
frames    WebSocket frames against the rules
events    Realtime events malformed, of wrong kinds, out of order
"""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ANY: list[Any] = [
    None, True, -1, 0, 3.5, 1e308, 10**30, "", "x", "\ud800", "\x00", "é日本", [], {}, [[]], {"type": None}, "a" * 3000,
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """`reads`: bytes to wait for before it leaves (0: at once); `resets`: without a goodbye."""

    kind: str
    pieces: list[bytes]
    reads: int
    resets: bool


def request(method: str, path: str, body: bytes, *headers: str, host: str = "127.0.0.1") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def frame(opcode: int, payload: bytes, *, final: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    first, size = (0x80 if final else 0) | reserved << 4 | opcode, len(payload)
    bit = 0x80 if masked else 0
    if size < 126:
        head = struct.pack("!BB", first, bit | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    if not masked:
        return head + payload
    return head + b"\x00\x00\x00\x00" + payload  # a mask of zeros: the payload as it is


class Cases:
    """An endless row of cases; the same seed gives the same ones."""

    def __init__(self, seed: int, model: str) -> None:
        self.rng, self.model = random.Random(seed), model
        self.kinds: dict[str, Callable[[], list[bytes]]] = {
            "whole": lambda: [self._request()],
            "garbled": self._garbled,
            "lying": self._lying,
            "bodies": self._bodies,
            "frames": self._frames,
            "events": self._events,
        }

    def next(self) -> Case:
        """The next case."""
        rng = self.rng
        kind = rng.choices(list(self.kinds), [1, 3, 2, 3, 3, 4])[0]
        pieces = self.kinds[kind]()
        if rng.random() < 0.3:  # cut anywhere, sent in two, or never to its end
            whole = b"".join(pieces)
            at = rng.randrange(len(whole) + 1)
            pieces = [whole[:at]] if rng.random() < 0.5 else [whole[:at], whole[at:]]
        return Case(kind, pieces, rng.choice([0, 0, 1, 200, 4000]), rng.random() < 0.5)

    # -- HTTP ----------------------------------------------------------------------------------------------------

    def _document(self) -> tuple[str, str, Any]:
        chat = {"model": self.model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        return self.rng.choice([
            ("POST", "/v1/chat/completions", {**chat, "stream": True}),
            ("POST", "/v1/chat/completions", {**chat, "n": 2}),
            ("POST", "/v1/completions", {"model": self.model, "prompt": "x", "max_tokens": 2}),
            ("POST", "/v1/sessions", {"id": f"victim-{self.rng.randrange(8)}"}),
            ("POST", "/v1/sessions/victim-1/ask", {"question": "x", "max_tokens": 2}),
            ("POST", "/v1/sessions/victim-1/truncate", {"tokens": 0}),
            ("POST", "/v1/sessions/victim-1/fork", {"id": f"victim-{self.rng.randrange(8)}"}),
            ("POST", "/v1/sessions/victim-1/save", {}),
        ])  # fmt: skip

    def _request(self) -> bytes:
        rng = self.rng
        if rng.random() < 0.5:
            method, path, document = self._document()
            return request(method, path, json.dumps(document).encode(), "Content-Type: application/json")
        method, path, body, kind = rng.choice([
            ("GET", "/v1/sessions", b"", "text/plain"), ("GET", "/metrics", b"", "text/plain"),
            ("GET", "/", b"", "text/plain"), ("GET", "/v1/sessions/victim-2", b"", "text/plain"),
            ("DELETE", f"/v1/sessions/victim-{rng.randrange(8)}", b"", "text/plain"),
            ("POST", "/v1/sessions/victim-1/append", b"some text " * rng.randrange(30), "text/plain"),
            ("POST", "/v1/sessions/victim-2/append", b'"a"\n{"text": "b"}\n', "application/jsonl"),
        ])  # fmt: skip
        return request(method, path, body, f"Content-Type: {kind}")

    def _garbled(self) -> list[bytes]:
        rng, data = self.rng, bytearray(self._request())
        for _ in range(rng.randrange(1, 9)):
            at = rng.randrange(len(data))
            what = rng.randrange(4)
            if what == 0:
                data[at] = rng.randrange(256)
            elif what == 1:
                data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(20)))
            elif what == 2:
                del data[at : at + rng.randrange(1, 20)]
                data = data or bytearray(b"\r\n")
            else:
                data[at:at] = data[: rng.randrange(len(data))]
        return [bytes(data[:20_000])]

    def _lying(self) -> list[bytes]:
        rng = self.rng
        head = b"POST /v1/sessions/victim-1/append HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        return rng.choice([
            lambda: [head + b"Content-Length: 1000000\r\n\r\nshort"],
            lambda: [head + b"Content-Length: -1\r\n\r\nx"],
            lambda: [head + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"],
            lambda: [head + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"],
            lambda: [head + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n", b"zz\r\n"],
            lambda: [head + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx"],
            lambda: [head + b"X: " + b"y" * rng.randrange(1 << 17)],
            lambda: [head + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"],
            lambda: [b"GET /" + b"a" * rng.randrange(1 << 17) + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"],
            lambda: [request("POST", "/v1/sessions", b" " * (9 << 20))[: 1 << 16]],
            lambda: [self._request() * rng.randrange(2, 20)],
            lambda: [bytes(rng.randrange(256) for _ in range(rng.randrange(300)))],
            lambda: [request("GET", "/v1/sessions", b"", host=rng.choice(["", "evil.example", "[::1", "\x00"]))],
            lambda: [request("OPTIONS", "*", b"", "Origin: http://evil.example", "Upgrade: h2c")],
        ])()  # fmt: skip

    def _bodies(self) -> list[bytes]:
        method, path, document = self._document()
        if self.rng.random() < 0.2:
            body = self.rng.choice([b"[" * 20_000, b"{", b"\xff\xfe\x00", b"nul", b'{"a": Infinity}', b'"x"', b"1e999"])
        else:
            body = json.dumps(self._mutated(document)).encode()
        return [request(method, path, body, "Content-Type: application/json")]

    def _mutated(self, value: Any) -> Any:
        """The same document with something of a wrong kind, missing or unknown, at any depth."""
        rng = self.rng
        if isinstance(value, dict) and value and rng.random() < 0.9:
            name = rng.choice(list(value))
            change = rng.randrange(4)
            if change == 0:
                return {k: v for k, v in value.items() if k != name}
            if change == 1:
                return {**value, rng.choice(["wings", "", "stop", "seed", "n", "event_id", "input"]): rng.choice(ANY)}
            return {**value, name: self._mutated(value[name])}
        if isinstance(value, list) and value and rng.random() < 0.7:
            return [self._mutated(value[0]), *value[1:]]
        return rng.choice(ANY)

    # -- WebSocket -----------------------------------------------------------------------------------------------

    def _handshake(self, query: str = "") -> bytes:
        key = base64.b64encode(self.rng.randbytes(16)).decode()
        lines = [
            f"GET /v1/realtime{query} HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", "",
        ]  # fmt: skip
        return "\r\n".join(lines).encode()

    def _frames(self) -> list[bytes]:
        rng, good = (
            self.rng,
            self._handshake(self.rng.choice(["", "", "?session=victim-3", "?model=x", "?session=../x"])),
        )
        item = json.dumps(self._event()).encode()
        return rng.choice([
            lambda: [good.replace(b"Version: 13", b"Version: 7")],
            lambda: [good.replace(b"Sec-WebSocket-Key", b"X-Key")],
            lambda: [good.replace(b"/v1/realtime", b"/v1/nothing"), frame(1, b"x")],
            lambda: [good, frame(1, item, masked=False)],
            lambda: [good, frame(rng.choice([3, 7, 11, 15]), b"x")],
            lambda: [good, frame(1, item, reserved=rng.randrange(1, 8))],
            lambda: [good, frame(1, item[:9], final=False), frame(1, item[9:])],
            lambda: [good, frame(1, item[:9], final=False), frame(9, b"ping"), frame(0, item[9:])],
            lambda: [good, frame(0, item)],
            lambda: [good, frame(9, b"x" * 126)],
            lambda: [good, frame(8, b"\x03")],
            lambda: [good, frame(8, struct.pack("!H", rng.choice([0, 999, 1005, 1006, 5000])) + b"\xff")],
            lambda: [good, frame(1, b"\xff\xfe")],
            lambda: [good, frame(2, item)],
            lambda: [good, struct.pack("!BBQ", 0x81, 0xFF, (1 << 63) - 1)],
            lambda: [good, frame(1, b"x" * 100, final=False) * 50],
            lambda: [good, frame(1, item) * 40],
            lambda: [good, frame(8, struct.pack("!H", 1000)), frame(1, item)],
            lambda: [good, rng.randbytes(rng.randrange(1, 400))],
        ])()  # fmt: skip

    def _event(self) -> dict[str, Any]:
        rng, id = self.rng, self.rng.choice(["a", "b", "c", "item_x"])
        message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x y"}]}
        return rng.choice([
            {"type": "session.update", "session": {"type": "realtime", "max_output_tokens": 3}},
            {"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"turn_detection": None}}}},
            {"type": "session.update", "session": {
                "type": "realtime", "truncation": {"type": "retention_ratio", "retention_ratio": rng.random()}}},
            {"type": "conversation.item.create", "item": {**message, "id": id}},
            {"type": "conversation.item.create", "item": message, "previous_item_id": rng.choice([id, "root"])},
            {"type": "conversation.item.create", "item": {
                "type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "AAAA"}]}},
            {"type": "conversation.item.delete", "item_id": id},
            {"type": "conversation.item.retrieve", "item_id": id},
            {"type": "conversation.item.truncate", "item_id": id, "content_index": 0, "audio_end_ms": 5},
            {"type": "response.create", "response": {"max_output_tokens": 2}},
            {"type": "response.create", "response": {"max_output_tokens": 2, "conversation": "none"}},
            {"type": "response.create", "response": {"max_output_tokens": 2, "input": [message]}},
            {"type": "response.cancel"},
            {"type": "input_audio_buffer.append", "audio": "AAAA"},
            {"type": "input_audio_buffer.commit"},
        ])  # fmt: skip

    def _events(self) -> list[bytes]:
        rng = self.rng
        pieces = [self._handshake(rng.choice(["", "", "", "?session=victim-4"]))]
        for _ in range(rng.randrange(1, 12)):
            event: Any = self._event()
            if rng.random() < 0.6:
                event = self._mutated(event)
            data = json.dumps(event).encode()
            if rng.random() < 0.1:
                data = data[: rng.randrange(len(data))]
            pieces.append(frame(1, data))
        return pieces
