"""What goes wrong on a network: malformed, oversized, cut and abruptly closed; nobody else notices."""

from __future__ import annotations

import gc
import json
import random
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.core import SimulatedClock
from penstock.engine.allocator import set_apart
from penstock.models.load import Model
from penstock.serve.access import Access, Caller, _hash
from penstock.serve.app import STUCK
from penstock.serve.http import Limits

CHAT = b'{"model": "LlamaForCausalLM", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "stream": true}'


def raw(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def request(method: str, path: str, body: bytes, address: str, *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {address.removeprefix('http://')}", *headers]
    return ("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])).encode() + body


def reset(connection: socket.socket) -> None:
    """Close without a goodbye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def until(done: Callable[[], bool]) -> None:
    """Wait; what never comes is ended by the suite's own limit."""
    while not done():
        time.sleep(0.01)


def test_connections_that_are_broken_anyhow(server: Any) -> None:
    """Three hundred connections, cut, closed, reset, garbled at random; another session goes on and is not changed."""
    rng, http = random.Random(1), server.http
    http.post("/v1/sessions", json={"id": "other"})
    http.post("/v1/sessions", json={"id": "victim"})
    before = threading.active_count()
    good = [
        request("POST", "/v1/chat/completions", CHAT, server.address, "Content-Type: application/json"),
        request("POST", "/v1/sessions/victim/append", b"some text " * 30, server.address),
        request("POST", "/v1/sessions/victim/append", b'"a"\n"b"\n', server.address, "Content-Type: application/jsonl"),
        request("POST", "/v1/sessions/victim/ask", b'{"question": "x", "max_tokens": 4}', server.address),
        request("GET", "/v1/sessions", b"", server.address),
        request("POST", "/v1/sessions/victim/fork", b"{}", server.address),
    ]
    for number in range(300):
        data = bytearray(rng.choice(good))
        kind = rng.randrange(4)
        if kind == 1:
            for _ in range(rng.randrange(1, 8)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        elif kind == 2:
            data = data[: rng.randrange(len(data))]
        connection = raw(server.address)
        try:
            connection.sendall(data)
            if kind == 3:
                connection.recv(rng.randrange(1, 200))
        except OSError:
            pass
        (reset if rng.random() < 0.5 else socket.socket.close)(connection)
        if number % 100 == 0:
            assert http.post("/v1/sessions/other/append", content="steady ").status_code == 200
    until(lambda: not server.app.state.server.answering)
    assert http.get("/health").json()["status"] == "ok"
    assert http.get("/v1/sessions/other").json()["bytes"] == 3 * len("steady ")
    body = {"question": "and?", "stream": False, "max_tokens": 3}
    for id in ("other", "victim"):
        assert http.post(f"/v1/sessions/{id}/ask", json=body).status_code == 200
    for session in http.get("/v1/sessions").json()["data"]:
        http.delete(f"/v1/sessions/{session['id']}")
    assert threading.active_count() <= before + 32 + 8  # the pool of threads, and nothing that grows


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"{", "invalid_json"), (b"\xff\xfe", "invalid_json"), (b'{"a": NaN}', "invalid_json"), (b"[" * 10**5, None)],
)
def test_bodies_that_are_not_json(server: Any, body: bytes, code: str | None) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/sessions"):
        answer = server.http.post(path, content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == (code or "invalid_json")


def test_bodies_that_are_too_long(serving: Callable[..., Any], model: Model) -> None:
    """Refused by what they declare, and by what they are; only an append may have any length."""
    running = serving(model, limits=Limits(body_bytes=1000, pending_bytes=2000))
    declared = running.http.post("/v1/chat/completions", content=b" " * 1001)
    chunked = running.http.post("/v1/chat/completions", content=iter([b" " * 600] * 2))
    for answer in (declared, chunked):
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    running.http.post("/v1/sessions", json={"id": "a"})
    told = running.http.post("/v1/sessions/a/append", content=iter([b"word " * 100] * 20)).json()
    assert told["bytes"] == 10_000


def test_a_bad_line_tells_what_was_taken(server: Any) -> None:
    server.http.post("/v1/sessions", json={"id": "a"})
    headers = {"content-type": "application/x-ndjson"}
    answer = server.http.post("/v1/sessions/a/append", content='"abc"\n{"text": 3}\n"d"\n', headers=headers)
    assert answer.status_code == 400
    assert answer.json()["bytes"] == answer.json()["session_bytes"] == 3
    assert "line 2" in answer.json()["error"]["message"]
    assert server.http.get("/v1/sessions/a").json()["bytes"] == 3


def test_an_upload_that_breaks_off_stays_as_far_as_it_came(
    serving: Callable[..., Any], model: Model, tmp_path: Path
) -> None:
    running = serving(model, tmp_path)
    http = running.http
    http.post("/v1/sessions", json={"id": "a"})
    connection = raw(running.address)
    head = request("POST", "/v1/sessions/a/append", b"", running.address, "Transfer-Encoding: chunked")
    connection.sendall(head.replace(b"Content-Length: 0\r\n", b"") + b"6\r\nfirst \r\n")
    until(lambda: http.get("/v1/sessions/a").json()["bytes"] >= 6)
    connection.sendall(b"ff\r\nnot all of it")
    reset(connection)
    assert http.post("/v1/sessions/a/append", content=b"then").status_code == 200
    assert http.get("/v1/sessions/a").json()["bytes"] in (10, 10 + len("not all of it"))


def test_owners_do_not_see_each_other(serving: Callable[..., Any], model: Model) -> None:
    tokens = {_hash("sk-a"): Caller("alice"), _hash("sk-b"): Caller("bob", 5)}
    http = serving(model, access=Access(tokens)).http
    alice, bob = ({"authorization": f"Bearer sk-{name}"} for name in "ab")
    assert http.get("/v1/models").status_code == 401
    assert http.get("/metrics").status_code == 401
    assert http.get("/health").status_code == 200
    assert http.post("/v1/sessions", json={"id": "a"}, headers=alice).status_code == 201
    assert http.get("/v1/sessions/a", headers=alice).status_code == 200
    assert http.get("/v1/sessions/a", headers=bob).status_code == 404
    assert http.get("/v1/sessions", headers=bob).json()["data"] == []
    assert http.delete("/v1/sessions/a", headers=bob).status_code == 404
    statuses = [http.get("/v1/models", headers=bob).status_code for _ in range(4)]
    assert statuses[-1] == 429
    refused = http.get("/v1/models", headers=bob)
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert int(refused.headers["retry-after"]) >= 1
    assert http.get("/v1/models", headers=alice).status_code == 200


def test_pages_of_others_are_kept_out(server: Any) -> None:
    foreign = server.http.post("/v1/sessions", json={}, headers={"origin": "http://evil.example"})
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "origin")
    assert "access-control-allow-origin" not in foreign.headers
    rebound = server.http.get("/v1/sessions", headers={"host": "evil.example"})
    assert (rebound.status_code, rebound.json()["error"]["code"]) == (403, "host")


def test_too_many_answers_at_once(serving: Callable[..., Any], model: Model) -> None:
    http = serving(model, limits=Limits(answers=1, drain_seconds=5)).http
    http.post("/v1/sessions", json={"id": "a"})
    body = {"question": "x", "max_tokens": 3000}
    with http.stream("POST", "/v1/sessions/a/ask", json=body) as first:
        lines = first.iter_lines()  # held: a dropped iterator ends the request
        next(lines)
        second = http.post("/v1/sessions/a/ask", json={**body, "stream": False})
        assert (second.status_code, second.json()["error"]["code"]) == (429, "busy")
        for call, given in (("fork", {}), ("truncate", {"tokens": 0})):
            assert http.post(f"/v1/sessions/a/{call}", json=given).json()["error"]["code"] == "answering"
    until(lambda: not http.get("/v1/sessions/a").json()["answering"])
    assert http.post("/v1/sessions/a/ask", json={**body, "stream": False, "max_tokens": 1}).status_code == 200


def test_a_stream_that_fails_says_so_and_the_others_go_on(serving: Callable[..., Any], model: Model) -> None:
    """A failure in the middle of an answer comes as an event; the session tells it, the rest is untouched."""
    running = serving(model)
    http = running.http
    for id in ("broken", "fine"):
        http.post("/v1/sessions", json={"id": id})
    runner = running.app.state.server.engine.runner
    real, calls = runner.step, []

    def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("the device has gone")
        return real(*arguments, **options)

    runner.step = failing
    with http.stream("POST", "/v1/sessions/broken/ask", json={"question": "x", "max_tokens": 9}) as answer:
        lines = [line for line in answer.iter_lines() if line]
    failed = json.loads(lines[-1].removeprefix("data: "))
    assert failed["error"]["type"] == "server_error"
    assert "device" not in json.dumps(failed)
    assert http.post("/v1/sessions/broken/append", content="x").status_code == 500
    assert http.get("/v1/sessions/broken").json()["error"]
    body = {"question": "x", "stream": False, "max_tokens": 3}
    assert http.post("/v1/sessions/fine/ask", json=body).status_code == 200


def test_who_is_slow_to_say_what_it_wants(serving: Callable[..., Any], model: Model) -> None:
    """Byte by byte wins no time: 408 for a header or a JSON body that does not end, and for saying nothing."""
    running = serving(model, limits=Limits(header_seconds=0.3, body_seconds=0.3))
    head = request("POST", "/v1/sessions", b"", running.address).replace(b"Length: 0", b"Length: 2")
    slow = [raw(running.address) for _ in range(3)]
    sent = [head[: len(head) - 1], head + b"{", b""]
    for connection, data in zip(slow, sent):
        connection.sendall(data)
    for connection in slow:
        got = b"".join(iter(lambda c=connection: c.recv(1 << 16), b""))  # up to its end: the server hangs up
        assert got.startswith(b"HTTP/1.1 408 ")
        assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"
        connection.close()


def test_a_step_that_does_not_end_is_told(server: Any) -> None:
    """By the engine's clock, while everything else answers; it is over when the step ends."""
    engine, http = server.app.state.server.engine, server.http
    engine.clock = clock = SimulatedClock()
    engine.moved = clock.now()
    step, goes_on = engine.runner.step, threading.Event()
    http.post("/v1/sessions", json={"id": "silent"})
    http.post("/v1/sessions", json={"id": "other"})

    def hangs(*args: Any, **options: Any) -> Any:
        assert goes_on.wait(60)
        return step(*args, **options)

    engine.runner.step = hangs
    http.post("/v1/sessions/other/append", content="words " * 50)
    assert http.get("/health").json()["status"] == "ok"
    clock.sleep(STUCK + 1)
    told = http.get("/health")
    assert (told.status_code, told.json()["stuck"]) == (503, 1)
    assert "no step has ended for 121 seconds" in told.json()["faults"][0]
    lines = http.get("/metrics").text.splitlines()
    assert {"penstock_stuck_sessions 1.0", "penstock_still_seconds 121.0"} <= set(lines)
    goes_on.set()
    until(lambda: http.get("/v1/sessions/other").json()["bytes_pending"] < 10)
    healthy = http.get("/health").json()
    assert (healthy["status"], healthy["faults"], healthy["sessions"], healthy["stuck"]) == ("ok", [], 2, 0)
    assert "penstock_stuck_sessions 0.0" in http.get("/metrics").text.splitlines()


def test_a_long_address_is_not_kept(serving: Callable[..., Any], model: Model) -> None:
    """Once a cache of the standard library kept the last 128 of them, up to 16 MB."""
    running = serving(model)
    host, port = running.address.removeprefix("http://").split(":")
    before = urllib.parse.urlsplit.cache_info()  # type: ignore[attr-defined]
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: line.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 404")
    assert len(answer) < 1000
    after = urllib.parse.urlsplit.cache_info()  # type: ignore[attr-defined]
    assert after.misses == before.misses


def test_closed_sessions_do_not_wait_for_the_models_garbage() -> None:
    """What lives as long as the server is not looked through for it."""
    try:
        set_apart()
        assert gc.get_freeze_count() > 100_000
    finally:
        gc.unfreeze()
