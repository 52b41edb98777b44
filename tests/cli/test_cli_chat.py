"""penstock chat: what a pipe gets, what a terminal can do, what stays at the server."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from penstock.cli import main
from penstock.cli.chat import ChatOptions, Talk
from penstock.cli.output import Output
from penstock.models.load import load
from penstock.testing import server
from penstock.testing.running import Running


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with server(load(None), state=tmp_path_factory.mktemp("state")) as found:
        yield found


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def chat(
    running: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:  # fmt: skip
    def said(lines: str | bytes, *arguments: str) -> Said:
        data = lines.encode() if isinstance(lines, str) else lines
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        code = main(["chat", running.address, "--max-tokens", "5", *arguments])
        return Said(code, *capsys.readouterr())

    return said


def test_a_pipe_gets_answers_and_nothing_stays(running: Running, chat: Callable[..., Said]) -> None:
    said = chat("Note: brave otter 483 is amber.\n\n/info\nAsk: brave otter 483 is\n")
    assert said.code == 0
    assert said.out.count("\n") >= 2
    assert "tokens_ingested" in said.err
    assert "tokens_ingested" not in said.out
    assert running.client().sessions.list() == []


def test_documents_name_sessions_that_stay(running: Running, chat: Callable[..., Said], tmp_path: Path) -> None:
    file = tmp_path / "a log.txt"
    file.write_bytes("ünï\n".encode() * 100)
    said = chat(f"/read {file}\nWhat?\n/fork two\n//slash\n/save\n/help\n/quit\nnever", "--json", "--session", "one")
    read, answer, fork, slash, saved, _help, end = said.documents
    assert (said.code, read["bytes"]) == (0, 600)
    assert (answer["question"], answer["finish"], answer["tokens"]) == ("What?", "length", 5)
    assert (fork, slash["question"], saved["saved"]) == ({"fork": "two", "of": "one"}, "/slash", "two")
    assert end == {"session": "two", "kept": True, "questions": 2}
    client = running.client()
    assert {info.id for info in client.sessions.list()} == {"one", "two"}
    again = chat("/info\n/forget\n/info\n", "--json", "--session", "two").documents
    assert again[0]["info"]["tokens"] > 100
    assert again[1] == {"forgot": True, "session": "two"}
    assert again[2]["info"]["tokens"] == 0
    for session in client.sessions:
        session.delete()


@pytest.mark.parametrize(
    ("lines", "arguments", "sentence"),
    [
        ("/sve\n", (), "did you mean /save?"),
        ("/read\n", (), "write /read FILE"),
        ("/read /nowhere/at/all\n", (), "cannot be read"),
        ("", ("--session", "no/slash"), "id"),
        ("", ("--max-tokens", "0"), "from 1 on"),
        ("", ("--temperature", "nan"), "from 0 to 2"),
        ("", ("--token", "ümlaut"), "token"),
    ],
)
def test_mistakes_end_with_a_sentence(
    running: Running, chat: Callable[..., Said], lines: str, arguments: tuple[str, ...], sentence: str
) -> None:
    said = chat(lines, *arguments)
    assert said.code == 2
    assert sentence in said.err
    assert "Traceback" not in said.err
    assert running.client().sessions.list() == []


def test_text_that_is_not_utf8_is_no_accident(chat: Callable[..., Said]) -> None:
    assert chat(b"\xff\xfe hi\n").code == 0


def test_no_server(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert main(["chat", "127.0.0.1:1"]) == 1
    assert "start one with penstock serve" in capsys.readouterr().err


def test_ctrl_c_ends_an_answer_and_not_the_conversation(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    client = running.client()
    talk = Talk(client, ChatOptions(url=running.address, max_tokens=4000), Output(), is_terminal=True)

    def interrupt() -> None:
        while not running.app.state.server.answering:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        threading.Thread(target=interrupt).start()
        assert talk.take("def read(")
    finally:
        signal.signal(signal.SIGINT, before)
    assert "(cancelled)" in capsys.readouterr().out
    while talk.session.info().answering:
        time.sleep(0.01)
    assert talk.session.info().tokens < 4000
    assert talk.take("/nope")
    assert "there is no command" in capsys.readouterr().err
    talk.end()
    assert f"--session {talk.session.id}" in capsys.readouterr().err
    talk.session.delete()
