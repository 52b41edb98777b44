"""Sessions that are written to and asked until their server is killed, and what the next one has of them."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.report import say
from bench.robust.process import LIMIT, started
from penstock.models.load import Model
from penstock.session import Session

WORDS = ["water", "gate", "valve", "steady", "pressure", "pipe", "stone", "river", "ünï", "日本", "(x == 1)"]
LAST = "and?"
_ANSWER, _LAST = 5, 8  # tokens


@dataclass
class Writer:
    """One active session until the server dies; a step is what was told and, for a question, what was answered."""

    address: str
    id: str
    seed: int
    done: list[tuple[str, str, str]] = field(default_factory=list)  # acknowledged, in order
    doing: tuple[str, str, str] = ("append", "", "")
    tokens: int = 0  # acknowledged
    bytes: int = 0

    def run(self) -> None:
        """Append and ask in turn."""
        rng = random.Random(self.seed)
        try:
            with httpx.Client(base_url=f"{self.address}/v1/sessions/{self.id}", timeout=LIMIT) as http:
                for number in range(10**6):
                    self.doing = ("append", " ".join(rng.choices(WORDS, k=rng.randrange(3, 25))) + "\n", "")
                    told = http.post("/append", content=self.doing[1].encode()).raise_for_status().json()
                    self.done.append(self.doing)
                    self.tokens, self.bytes = told["session_tokens"], told["session_bytes"]
                    if number % 3 == 2:
                        self.doing = ("ask", f"what is {number}?", "")
                        answer, tokens = ask(http, "/ask", self.doing[1], _ANSWER)
                        self.done.append((*self.doing[:2], answer))
                        self.tokens += tokens
        except httpx.HTTPError:
            return


def ask(http: httpx.Client, path: str, question: str, most: int) -> tuple[str, int]:
    """An answer and its tokens; who is told to come again later does so."""
    body = {"question": question, "max_tokens": most, "stream": False}
    while (response := http.post(path, json=body)).status_code == httpx.codes.TOO_MANY_REQUESTS:
        time.sleep(float(response.headers["retry-after"]))
    told = response.raise_for_status().json()
    return told["choices"][0]["message"]["content"], told["usage"]["completion_tokens"]


def _tell(session: Session, step: tuple[str, str, str]) -> str:
    kind, text, _ = step
    if kind == "append":
        session.feed(text)
        return ""
    return "".join(session.reply(text, max_new=_ANSWER))


def _ends(session: Session) -> tuple[str, int]:
    """What it says last, and how long it is then."""
    return "".join(session.reply(LAST, max_new=_LAST)), session.tokens


def compared(model: Model, budget: int, writer: Writer, got: tuple[str, int]) -> tuple[dict[str, Any] | None, bool]:
    """Where a restored session differs from one alone that was told the same, and whether it had what was under way."""
    session = Session(model, "streaming-llm", budget, path="eager")
    said = [_tell(session, step) for step in writer.done]
    further = session.fork()
    _tell(further, writer.doing)
    ends = [_ends(further), _ends(session)]
    if said == [answer for _, _, answer in writer.done] and got in ends:
        return None, got == ends[0]
    return {"told": writer.done, "alone": said, "got": got, "expected": ends}, False


def crash(
    model: Model, folder: Path, arguments: tuple[object, ...], count: int, rounds: int, seed: int, budget: int
) -> dict[str, Any]:
    """Kill one server in the middle of `count` active sessions; what the next one has.

    `arguments` make it serve `model`, which computes in float32: there the company in a batch decides no token.
    """
    arguments = (*arguments, "--state", folder, "--budget", budget)
    began = time.perf_counter()
    with started(*arguments) as server:
        writers = [Writer(server.address, f"s{i}", seed * 10**6 + i) for i in range(count)]
        for writer in writers:
            server.http.post("/v1/sessions", json={"id": writer.id}).raise_for_status()
        threads = [threading.Thread(target=writer.run, daemon=True) for writer in writers]
        for thread in threads:
            thread.start()
        while min(len(writer.done) for writer in writers) < rounds:
            time.sleep(0.02)
            assert server.process.poll() is None, server.errors.read_text()
        server.http.post(f"/v1/sessions/{writers[0].id}/save")  # one at least is replayed from a snapshot
        server.process.kill()
        for thread in threads:
            thread.join(LIMIT)
    acknowledged = sum(len(writer.done) for writer in writers)
    say(f"killed after {acknowledged} acknowledgements and {time.perf_counter() - began:.0f} s")
    began = time.perf_counter()
    with started(*arguments) as server:
        ready = time.perf_counter() - began
        data = server.http.get("/v1/sessions").raise_for_status().json()["data"]
        found = {each["id"]: each for each in data}
        known = [(writer, found[writer.id]) for writer in writers if writer.id in found]
        got = {}
        for writer in writers:
            answer, _ = ask(server.http, f"/v1/sessions/{writer.id}/ask", LAST, _LAST)
            got[writer.id] = answer, server.http.get(f"/v1/sessions/{writer.id}").json()["tokens"]
        say(f"ready after {ready:.0f} s, all sessions asked after {time.perf_counter() - began:.0f} s")
        errors = server.errors.read_text()
    whole, differing = 0, {}
    for writer in writers:
        differs, is_whole = compared(model, budget, writer, got[writer.id])
        whole += is_whole
        if differs is not None:
            differing[writer.id] = differs
    return {
        "sessions": count, "seed": seed, "acknowledged": acknowledged,
        "acknowledged_bytes": sum(writer.bytes for writer in writers),
        "lost_bytes": sum(max(0, writer.bytes - each["bytes"]) for writer, each in known),
        "lost_tokens": sum(max(0, writer.tokens - each["tokens"]) for writer, each in known),
        "missing_sessions": count - len(known), "exact": count - len(differing), "with_what_was_under_way": whole,
        "seconds_to_ready": round(ready, 2), "differing": differing, "errors": errors[-2000:],
    }  # fmt: skip
