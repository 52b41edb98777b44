"""The real program: ready line, signals, kill -9 in the middle of everything, and what the next one finds."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.robust.crash import crash
from bench.robust.process import started
from penstock.models.load import Model, load

LIMIT = 120  # seconds: what never ends fails instead of hanging
PIECE = "the next line of stream {} is number {} — ünï\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    path = tmp_path_factory.mktemp("models") / "random"
    hf: Any = model.attached.hf
    hf.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path


@pytest.mark.slow
def test_sigterm_drains_and_saves(folder: Path, tmp_path: Path) -> None:
    """An endless answer and an endless upload are under way: both end, and nothing that was acknowledged is lost."""
    with started(folder, "--state", tmp_path, "--budget", 32) as (process, ready, http, _):
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
    with started(folder, "--state", tmp_path, "--budget", 32) as (_, _, http, _):
        found = {each["id"]: each for each in http.get("/v1/sessions").json()["data"]}
        assert found["reads"]["tokens"] >= acknowledged
        assert 0 < found["speaks"]["tokens"] < 4000
        assert http.post("/v1/sessions/speaks/ask", json={"question": "?", "stream": False, "max_tokens": 2}).is_success


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_acknowledged(folder: Path, tmp_path: Path) -> None:
    """A slice of bench/serve_crash.py: ten sessions are written to and asked; afterwards each goes on token-exact."""
    found = crash(load(folder), tmp_path, (folder,), 10, rounds=3, seed=0, budget=32)
    assert (found["lost_bytes"], found["lost_tokens"], found["missing_sessions"]) == (0, 0, 0)
    assert found["differing"] == {}
    assert found["errors"] == ""
    assert found["acknowledged"] >= 30


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
