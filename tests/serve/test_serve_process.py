"""The real program: ready line, signals, kill -9 in the middle of everything, and what the next one finds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from penstock.models.load import Model, load
from penstock.session import Session

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LIMIT = 120  # seconds: what never ends fails instead of hanging
SESSIONS = 10
PIECE = "the next line of stream {} is number {} — ünï\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    path = tmp_path_factory.mktemp("models") / "random"
    hf: Any = model.attached.hf
    hf.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path


class Started(NamedTuple):
    process: subprocess.Popen[str]
    ready: dict[str, Any]
    http: httpx.Client


@contextmanager
def started(*arguments: object) -> Iterator[Started]:
    command = [sys.executable, "-m", "penstock.cli", "serve", *map(str, arguments), "--port", "0", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            ready = json.loads(line)["ready"]
            with httpx.Client(base_url=ready["address"], timeout=LIMIT) as http:
                yield Started(process, ready, http)
        finally:
            process.kill()


@pytest.mark.slow
def test_sigterm_drains_and_saves(folder: Path, tmp_path: Path) -> None:
    """An endless answer and an endless upload are under way: both end, and nothing that was acknowledged is lost."""
    with started(folder, "--state", tmp_path, "--budget", 32) as (process, ready, http):
        assert ready["durable"] is True
        for id in ("speaks", "reads"):
            http.post("/v1/sessions", json={"id": id}).raise_for_status()
        acknowledged = http.post("/v1/sessions/reads/append", content="some text\n" * 50).json()["session_tokens"]

        def forever() -> Iterator[bytes]:
            for number in range(10**6):
                yield PIECE.format("reads", number).encode()

        def upload() -> None:
            with pytest.raises(httpx.HTTPError):
                httpx.post(f"{ready['address']}/v1/sessions/reads/append", content=forever()).raise_for_status()

        uploading = threading.Thread(target=upload)
        body = {"question": "go on", "max_tokens": 4000}
        with http.stream("POST", "/v1/sessions/speaks/ask", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            uploading.start()
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        uploading.join(LIMIT)
        assert process.wait(LIMIT) == 0
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"ended": True, "sessions": 2}
    with started(folder, "--state", tmp_path, "--budget", 32) as (_, _, http):
        found = {each["id"]: each for each in http.get("/v1/sessions").json()["data"]}
        assert found["reads"]["tokens"] >= acknowledged
        assert 0 < found["speaks"]["tokens"] < 4000
        assert http.post("/v1/sessions/speaks/ask", json={"question": "?", "stream": False, "max_tokens": 2}).is_success


class Writer(threading.Thread):
    """One active session: it appends and asks in turns until the server dies, and remembers what was acknowledged."""

    def __init__(self, address: str, id: str) -> None:
        super().__init__(daemon=True)
        self.address, self.id = address, id
        self.done: list[tuple[str, str]] = []  # what was acknowledged, in order
        self.doing: tuple[str, str] | None = None  # what was under way
        self.tokens = 0  # acknowledged last

    def run(self) -> None:
        try:
            with httpx.Client(base_url=f"{self.address}/v1/sessions/{self.id}", timeout=LIMIT) as http:
                for number in range(10**6):
                    self.doing = ("append", PIECE.format(self.id, number))
                    told = http.post("/append", content=self.doing[1]).raise_for_status().json()
                    self.done.append(self.doing)
                    self.tokens = told["session_tokens"]
                    if number % 3 == 2:
                        self.doing = ("ask", f"what is {number}?")
                        body = {"question": self.doing[1], "max_tokens": 5, "stream": False}
                        usage = http.post("/ask", json=body).raise_for_status().json()["usage"]
                        self.done.append(self.doing)
                        self.tokens += usage["completion_tokens"]
        except httpx.HTTPError:
            return


def replayed(model: Model, steps: list[tuple[str, str]]) -> Session:
    """A session alone that was told the same."""
    session = Session(model, "streaming-llm", 32, path="eager")
    for kind, text in steps:
        if kind == "append":
            session.feed(text)
        else:
            for _ in session.reply(text, max_new=5):
                pass
    return session


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_acknowledged(folder: Path, tmp_path: Path) -> None:
    """Ten sessions are written to and asked; afterwards each goes on token-exact.

    What was under way and not acknowledged is there as a whole or not at all.
    """
    ids = [f"stream-{i}" for i in range(SESSIONS)]
    with started(folder, "--state", tmp_path, "--budget", 32) as (process, ready, http):
        for id in ids:
            http.post("/v1/sessions", json={"id": id}).raise_for_status()
        writers = [Writer(ready["address"], id) for id in ids]
        for writer in writers:
            writer.start()
        while min(len(writer.done) for writer in writers) < 3:
            if writers[0].done and len(writers[0].done) == 2:  # some of what is replayed is behind a snapshot
                http.post(f"/v1/sessions/{ids[0]}/save")
            time.sleep(0.05)
        process.kill()
        for writer in writers:
            writer.join(LIMIT)
    with started(folder, "--state", tmp_path, "--budget", 32) as (_, ready, http):
        assert ready["sessions"] == SESSIONS
        at_once = {each["id"]: each["tokens"] for each in http.get("/v1/sessions").json()["data"]}
        model = load(folder)
        for writer in writers:
            assert at_once[writer.id] >= writer.tokens
            body = {"question": "and?", "max_tokens": 8, "stream": False}
            told = http.post(f"/v1/sessions/{writer.id}/ask", json=body).raise_for_status().json()
            tokens = http.get(f"/v1/sessions/{writer.id}").json()["tokens"]
            assert writer.doing is not None
            candidates = [replayed(model, writer.done), replayed(model, [*writer.done, writer.doing])]
            answers = [("".join(session.reply("and?", max_new=8)), session.tokens) for session in candidates]
            assert (told["choices"][0]["message"]["content"], tokens) in answers


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "70000"), "--port"),
        (("--memory", "streaming-lm"), "did you mean"),
        (("--budget", "none"), "budget"),
        (("--tokens-file", "/nowhere/tokens"), "tokens"),
        (("--host", "256.0.0.1", "--port", "0"), "listen"),
    ],
)
def test_mistakes_are_told_in_one_sentence(arguments: tuple[str, ...], words: str, capsys: Any) -> None:
    from penstock.cli import main

    assert main(["serve", *arguments]) == 2
    assert words in capsys.readouterr().err
