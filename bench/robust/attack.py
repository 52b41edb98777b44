"""Broken connections against a server, beside healthy sessions whose answers are known."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.robust.cases import Case, Cases
from penstock.models.load import Model
from penstock.session import Session

PATIENCE = 0.3  # seconds that a case waits for an answer
LINE = "line {} of a session that must not notice\n"


def attempt(address: str, case: Case) -> None:
    """Try one case; whatever the server does with it is fine, as long as it lives."""
    host, port = address.removeprefix("http://").split(":")
    try:
        connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
    except OSError:
        return
    try:
        for piece in case.pieces:
            connection.sendall(piece)
        got = 0
        while got < case.reads and (data := connection.recv(4096)):
            got += len(data)
    except OSError:
        pass
    if case.resets:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@dataclass
class Healthy:
    """A session that appends and asks all the time, and what it is told."""

    address: str
    id: str
    stops: threading.Event
    answers: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)  # seconds
    failures: list[str] = field(default_factory=list)

    def run(self) -> None:
        with httpx.Client(base_url=self.address, timeout=120) as http:
            while not self.stops.is_set():
                try:
                    http.post(
                        f"/v1/sessions/{self.id}/append", content=LINE.format(len(self.answers))
                    ).raise_for_status()
                    began = time.perf_counter()
                    body = {"question": "and?", "max_tokens": 4, "stream": False}
                    told = http.post(f"/v1/sessions/{self.id}/ask", json=body).raise_for_status().json()
                    self.waits.append(time.perf_counter() - began)
                    self.answers.append(told["choices"][0]["message"]["content"])
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    return
                time.sleep(0.2)

    def wrong(self, model: Model, budget: int) -> int:
        """How many answers differ from those of a session alone."""
        session, differing = Session(model, "streaming-llm", budget, path="eager"), 0
        for number, answer in enumerate(self.answers):
            session.feed(LINE.format(number))
            differing += answer != "".join(session.reply("and?", max_new=4))
        return differing


def attack(address: str, cases: Cases, count: int, workers: int = 8) -> Counter[str]:
    """Try so many cases, several at once; how many of each kind."""
    kinds: Counter[str] = Counter()
    with ThreadPoolExecutor(workers) as pool:
        pending: set[Any] = set()
        for case in itertools.islice(iter(cases.next, None), count):
            kinds[case.kind] += 1
            pending.add(pool.submit(attempt, address, case))
            while len(pending) >= 4 * workers:
                pending = {each for each in pending if not each.done()}
                time.sleep(0.001)
    return kinds


def crawl(address: str, count: int, limit: float) -> dict[str, int]:
    """Slow ones, all at once: each sends a byte of a header, or of a body, in every half second, without end.

    Returns how many were shut out by the server within `limit` seconds, and how many of those with 408.
    """
    host, port = address.removeprefix("http://").split(":")
    head = b"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    starts = [head, head + b"Content-Length: 100000\r\n\r\n"]
    lines = [socket.create_connection((host, int(port)), timeout=30) for _ in range(count)]
    got: dict[socket.socket, bytes] = {}
    for line, start in zip(lines, itertools.cycle(starts)):
        line.sendall(start)
        line.setblocking(False)
    deadline = time.monotonic() + limit
    while len(got) < count and time.monotonic() < deadline:
        for line in lines:
            if line in got:
                continue
            try:
                got[line] = line.recv(1 << 16)
            except BlockingIOError:
                with contextlib.suppress(OSError):
                    line.send(b"a")
            except OSError:
                got[line] = b""
        time.sleep(0.5)
    for line in lines:
        line.close()
    return {"slow": count, "shut_out": len(got), "with_408": sum(b" 408 " in data[:16] for data in got.values())}


def settle(address: str, keep: set[str], seconds: float = 30.0) -> dict[str, Any]:
    """Delete what the cases made; what is left when nothing is under way any more."""
    deadline = time.monotonic() + seconds
    with httpx.Client(base_url=address, timeout=60) as http:
        while True:
            found = http.get("/v1/sessions").raise_for_status().json()["data"]
            extra = [each for each in found if each["id"] not in keep]
            for each in extra:
                with contextlib.suppress(httpx.HTTPError):
                    http.delete(f"/v1/sessions/{each['id']}")
            lines = [
                line for line in http.get("/metrics").text.splitlines()
                if line.startswith(("penstock_realtime_connections ", "penstock_answering "))
            ]  # fmt: skip
            busy = sum(float(line.split()[-1]) for line in lines)
            if (not extra and not busy) or time.monotonic() > deadline:
                return {"extra_sessions": len(extra), "busy": busy, "health": http.get("/health").json()["status"]}
            time.sleep(0.1)
