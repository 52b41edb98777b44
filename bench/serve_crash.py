"""What is lost when the server is killed in the middle of everything?

    python -m bench.serve_crash --sessions 100 --seed 0

Every session has a writer that appends text and asks questions in turn and remembers what was acknowledged.  When each
has at least `--rounds` acknowledgements the server is killed with SIGKILL.  The next server on the same folder must

    lost      hold every acknowledged byte and token, told at once, before any replay ends
    exact     answer one more question as a session alone that was told the same: the same text at the same length
              (what was under way and not acknowledged may be there, as a whole, or not)

The shipped model, budget 256.  Last line: one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from dataclasses import dataclass, field

import httpx

from bench.machine import record
from bench.report import say
from bench.robust.process import started
from penstock.models.load import Model, load
from penstock.session import Session

LIMIT = 600.0  # seconds: what never ends fails
WORDS = ["water", "gate", "valve", "steady", "pressure", "pipe", "stone", "river", "ünï", "日本", "(x == 1)"]


@dataclass
class Writer:
    """One active session until the server dies."""

    address: str
    id: str
    seed: int
    done: list[tuple[str, str]] = field(default_factory=list)  # acknowledged, in order
    doing: tuple[str, str] | None = None
    tokens: int = 0  # acknowledged
    bytes: int = 0

    def run(self) -> None:
        rng = random.Random(self.seed)
        try:
            with httpx.Client(base_url=f"{self.address}/v1/sessions/{self.id}", timeout=LIMIT) as http:
                for number in range(10**6):
                    self.doing = ("append", " ".join(rng.choices(WORDS, k=rng.randrange(3, 25))) + "\n")
                    told = http.post("/append", content=self.doing[1].encode()).raise_for_status().json()
                    self.done.append(self.doing)
                    self.tokens, self.bytes = told["session_tokens"], told["session_bytes"]
                    if number % 3 == 2:
                        self.doing = ("ask", f"what is {number}?")
                        body = {"question": self.doing[1], "max_tokens": 5, "stream": False}
                        usage = http.post("/ask", json=body).raise_for_status().json()["usage"]
                        self.done.append(self.doing)
                        self.tokens += usage["completion_tokens"]
        except httpx.HTTPError:
            return


def replayed(model: Model, budget: int, steps: list[tuple[str, str]]) -> tuple[str, int]:
    """What a session alone says that was told the same, and how long it is then."""
    session = Session(model, "streaming-llm", budget, path="eager")
    for kind, text in steps:
        if kind == "append":
            session.feed(text)
        else:
            for _ in session.reply(text, max_new=5):
                pass
    return "".join(session.reply("and?", max_new=8)), session.tokens


def crash(count: int, rounds: int, seed: int, budget: int = 256) -> dict[str, object]:
    """Kill one server in the middle of `count` active sessions; what the next one has."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ("--state", folder, "--budget", budget)
        with started(*arguments) as server, httpx.Client(base_url=server.address, timeout=LIMIT) as http:
            writers = [Writer(server.address, f"s{i}", seed * 10**6 + i) for i in range(count)]
            for writer in writers:
                http.post("/v1/sessions", json={"id": writer.id}).raise_for_status()
            threads = [threading.Thread(target=writer.run, daemon=True) for writer in writers]
            for thread in threads:
                thread.start()
            while min(len(writer.done) for writer in writers) < rounds:
                time.sleep(0.02)
            http.post(f"/v1/sessions/{writers[0].id}/save")  # one at least is replayed from a snapshot
            server.process.kill()
            for thread in threads:
                thread.join(LIMIT)
        say(f"killed after {sum(len(writer.done) for writer in writers)} acknowledgements")
        began = time.perf_counter()
        with started(*arguments) as server, httpx.Client(base_url=server.address, timeout=LIMIT) as http:
            ready = time.perf_counter() - began
            found = {each["id"]: each for each in http.get("/v1/sessions").raise_for_status().json()["data"]}
            lost_bytes = sum(max(0, w.bytes - found[w.id]["bytes"]) for w in writers if w.id in found)
            lost_tokens = sum(max(0, w.tokens - found[w.id]["tokens"]) for w in writers if w.id in found)
            missing = sum(w.id not in found for w in writers)
            model, exact, whole = load(None), 0, 0
            for writer in writers:
                body = {"question": "and?", "max_tokens": 8, "stream": False}
                answer = http.post(f"/v1/sessions/{writer.id}/ask", json=body).raise_for_status().json()
                tokens = http.get(f"/v1/sessions/{writer.id}").json()["tokens"]
                got = answer["choices"][0]["message"]["content"], tokens
                assert writer.doing is not None
                with_it = replayed(model, budget, [*writer.done, writer.doing])
                whole += got == with_it
                exact += got == with_it or got == replayed(model, budget, writer.done)
    return {
        "sessions": count, "seed": seed, "acknowledged": sum(len(w.done) for w in writers),
        "acknowledged_bytes": sum(w.bytes for w in writers), "lost_bytes": lost_bytes, "lost_tokens": lost_tokens,
        "missing_sessions": missing, "exact": exact, "with_what_was_under_way": whole,
        "seconds_to_ready": round(ready, 2),
    }  # fmt: skip


def main() -> None:
    """Crash, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5, help="acknowledgements of each session before the kill")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = crash(arguments.sessions, arguments.rounds, arguments.seed)
    say(f"acknowledged input lost: {result['lost_bytes']} bytes, {result['lost_tokens']} tokens")
    say(f"sessions resumed token-exact: {result['exact']} of {result['sessions']}")
    print(json.dumps({**result, "machine": record()}))


if __name__ == "__main__":
    main()
