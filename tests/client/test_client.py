"""Both clients against the real application, and against failures that no good server makes."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import penstock
from penstock.client import BrokenOff, Refused, Unreachable
from penstock.client.calls import Reader, where
from penstock.errors import InputError, MissingExtra, NotRewindable, Overloaded, PenstockError, UsageError
from penstock.models.load import Model, load
from penstock.models.paths import Runner
from penstock.session import Session
from penstock.testing import server
from penstock.testing.running import Running

TEXT = "the next line — ünï 日本語\n" * 30
MEMORY, BUDGET = "streaming-llm", 64


@pytest.fixture(scope="module")
def model() -> Model:
    return load(None, dtype="float32")  # in bfloat16 ties are decided by how steps were cut


@pytest.fixture(scope="module")
def running(model: Model) -> Iterator[Running]:
    with server(model, MEMORY, BUDGET) as found:
        yield found
        found.engine.check()


def expected(model: Model) -> list[str]:
    """What a session alone answers, twice."""
    session = Session(model, MEMORY, BUDGET, path="eager")
    session.feed(TEXT)
    return ["".join(session.reply(question, max_new=12)) for question in ("What?", "And then?")]


def test_a_session_from_begin_to_end(running: Running, model: Model, tmp_path: Path) -> None:
    data = TEXT.encode()
    with running.client() as client:
        assert client.health()["status"] == "ok"
        assert client.model() == model.name
        session = client.sessions.create("one")
        done = session.append(data[i : i + 7] for i in range(0, len(data), 7))
        assert (done.bytes, done.session_bytes, done.session_tokens) == (len(data), len(data), done.tokens)
        file = tmp_path / "a file"
        file.write_bytes(data)
        with file.open("rb") as binary, file.open(encoding="utf-8") as text:
            assert client.sessions.create("two").append(binary).bytes == len(data)
            assert client.sessions.get("two").append(text).session_bytes == 2 * len(data)
        client.sessions.get("two").delete()
        with session.ask("What?", max_tokens=12) as answer:
            assert [answer.text()] == expected(model)[:1]
            assert (answer.finish, answer.usage is not None and answer.usage.completion_tokens) == ("length", 12)
        fork = session.fork()
        assert fork.ask("And then?", max_tokens=12).text() == expected(model)[1]
        info = session.info()
        assert fork.info().tokens > info.tokens
        with pytest.raises(NotRewindable) as no:
            fork.truncate(600)
        assert isinstance(no.value, Refused)
        assert (no.value.status, no.value.code) == (409, "not_exact")
        assert fork.truncate(3).tokens == 3, "sinks are never evicted"
        assert {each.id for each in client.sessions.list()} >= {"one", fork.id}
        for each in (fork, session):
            each.delete()
        for call in (session.info, session.delete, lambda: client.sessions.get("one"), lambda: session.append(TEXT)):
            with pytest.raises(UsageError, match="there is no session one"):
                call()


def test_the_same_for_asyncio(running: Running, model: Model) -> None:
    async def parts() -> Any:
        for line in TEXT.splitlines(keepends=True):
            yield line

    async def live() -> None:
        async with running.async_client() as client:
            assert (await client.health())["status"] == "ok"
            session = await client.sessions.create()
            assert (await session.append(parts())).bytes == len(TEXT.encode())
            async with await session.ask("What?", max_tokens=12) as answer:
                assert [piece async for piece in answer] != []
                assert answer.finish == "length"
            fork = await session.fork()
            assert await (await fork.ask("And then?", max_tokens=12)).text() == expected(model)[1]
            assert (await fork.info()).tokens > (await session.info()).tokens
            with pytest.raises(NotRewindable):
                await fork.truncate(600)
            with pytest.raises(Refused, match="keeps nothing"):
                await fork.save()
            await fork.delete()
            await session.delete()
            assert fork.id not in {info.id for info in await client.sessions.list()}

    asyncio.run(live())


def quiet(info: Callable[[], Any]) -> None:
    """Until no answer is under way."""
    while info().answering:
        time.sleep(0.01)


def test_an_answer_is_cancelled_by_leaving_it_and_from_another_thread(running: Running) -> None:
    client = running.client()
    session = client.sessions.create()
    session.append(TEXT)
    with session.ask("What?", max_tokens=4000) as answer:
        next(answer)
    assert answer.finish == "cancelled"
    quiet(session.info)
    answer = session.ask("What?", max_tokens=4000)
    next(answer)
    threading.Timer(0.1, answer.cancel).start()
    assert answer.text() != ""
    assert answer.finish == "cancelled"
    quiet(session.info)
    assert session.info().tokens < 4000
    assert list(answer) == []


@pytest.mark.parametrize("how", ["task", "cancel", "leave"])
def test_an_asynchronous_answer_is_cancelled(running: Running, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Runner.step

    def slow(self: Runner, *args: Any, **more: Any) -> Any:
        time.sleep(0.004)  # as a larger model: what is cancelled has not ended by itself meanwhile
        return step(self, *args, **more)

    monkeypatch.setattr(Runner, "step", slow)

    async def live() -> None:
        async with running.async_client() as client:
            session = await client.sessions.create()
            await session.append(TEXT)
            answer = await session.ask("What?", max_tokens=4000)
            await anext(answer)
            if how == "leave":
                await answer.aclose()
            else:
                reading = asyncio.create_task(answer.text())
                await asyncio.sleep(0.1)
                if how == "task":
                    reading.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await reading
                else:
                    await answer.cancel()
                    await reading
            assert answer.finish == "cancelled"
            while (await session.info()).answering:
                await asyncio.sleep(0.01)
            assert (await session.info()).tokens < 4000
            await session.delete()

    asyncio.run(live())


class Scripted(httpx.BaseTransport):
    """A server that says what it is told to, and counts."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.asked.append(f"{request.method} {request.url.path}")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def no(status: int, code: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers=headers, json={"error": {"message": "no.", "code": code}})


def test_what_is_sent_again_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    found = httpx.Response(200, json={"data": []})
    made = httpx.Response(201, json={"id": "a"})
    cut = httpx.ReadError("cut")

    def client(*answers: Any) -> tuple[penstock.Client, Scripted]:
        script = Scripted(*answers)
        return penstock.Client("http://x", transport=script), script

    for first in (
        cut,
        httpx.ConnectError("no"),
        no(503, "draining"),
        no(429, "rate_limit_exceeded", **{"retry-after": "3"}),
    ):
        safe, script = client(first, found)
        assert safe.sessions.list() == []
        assert len(script.asked) == 2
    assert waits == [0.25, 0.25, 0.25, 3.0]
    again, script = client(httpx.ConnectError("no"), made)
    assert again.sessions.create().id == "a"
    for failure, kind in ((cut, BrokenOff), (httpx.ReadTimeout("slow"), Unreachable), (no(409, "exists"), UsageError)):
        once, script = client(failure, made)
        with pytest.raises(kind):
            once.sessions.create()
        assert len(script.asked) == 1, failure
    many, script = client(*[httpx.ConnectError("no")] * 9)
    with pytest.raises(Unreachable, match="penstock serve"):
        many.model()
    assert len(script.asked) == 3
    patient, script = client(no(429, "rate_limit_exceeded", **{"retry-after": "3600"}), found)
    with pytest.raises(Overloaded):
        patient.sessions.list()
    for strange in (
        httpx.Response(200, text="<html>"),
        httpx.Response(502, text="<html>"),
        httpx.Response(200, json=[]),
    ):
        other, script = client(strange)
        with pytest.raises(PenstockError, match="check the URL"):
            other.model()


def test_an_answer_that_breaks_off_is_an_error() -> None:
    chunk = b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n'
    told = b'data: {"error": {"message": "the disk is full.", "code": "insufficient_storage"}}\n\n'
    for body, error in ((chunk, "ended in the middle"), (chunk + told, "the disk is full")):
        client = penstock.Client("http://x", transport=Scripted(httpx.Response(200, content=body)))
        answer = penstock.client.ClientSession(client, "a").ask("?")
        assert next(answer) == "half"
        with pytest.raises(PenstockError, match=error):
            next(answer)


def test_events_are_cut_at_line_feeds_and_nowhere_else() -> None:
    text = "one\u2028two\x85three\x0c\r end 日本"
    document = {"choices": [{"delta": {"content": text}, "finish_reason": None}]}
    data = b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\r\n\r\ndata: [DONE]\n\n"
    reader = Reader()
    assert "".join(piece for i in range(len(data)) for piece in reader.feed(data[i : i + 1])) == text
    assert reader.is_over


def test_bad_arguments_are_named() -> None:
    for url in ("ftp://x", "http://", "http://x:port"):
        with pytest.raises(UsageError, match="give one like http"):
            penstock.Client(url)
    with pytest.raises(UsageError, match="token"):
        penstock.Client(token="two words")
    assert where("localhost:8321/v1/", None).url == "http://localhost:8321"
    client = penstock.Client("http://x", transport=Scripted())
    session = penstock.client.ClientSession(client, "a")
    for bad in ("\ud800", ["fine", "\udfff"]):
        with pytest.raises(InputError, match="half a character"):
            session.append(bad)
    with pytest.raises(InputError, match="half a character"):
        session.ask("\ud800")
    with pytest.raises(UsageError, match="JSON"):
        session.ask("?", temperature=float("nan"))
    with pytest.raises(UsageError, match="no way 'tokens' to ask: the ways are raw"):
        session.ask("?", tokens=7)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="cannot be appended"):
        session.append([7])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="cannot be called"):
        client.sessions.get("")


def test_tokens_and_who_sees_what(model: Model) -> None:
    with server(model, tokens={"a-token": "alice", "b-token": "bob"}) as running:
        running.client(token="a-token").sessions.create("hers")
        assert running.client(token="b-token").sessions.list() == []
        with pytest.raises(UsageError, match="no session hers"):
            running.client(token="b-token").sessions.get("hers")
        with pytest.raises(Refused, match="valid token") as no:
            running.client().sessions.list()
        assert no.value.status == 401


def test_a_server_in_process_keeps_its_sessions(model: Model, tmp_path: Path) -> None:
    with server(model, state=tmp_path) as running:
        session = running.client().sessions.create("kept")
        session.append(TEXT)
        assert session.save() > 1000
        tokens = session.info().tokens
    with pytest.raises(Unreachable):
        penstock.Client(running.address, retries=0).sessions.list()
    with server(model, state=tmp_path) as running:
        assert running.client().sessions.get("kept").info().tokens == tokens


def test_without_httpx_a_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    for kind in (penstock.Client, penstock.AsyncClient):
        with pytest.raises(MissingExtra, match=r"pip install 'penstock\[serve\]'"):
            kind()
    for file in Path(penstock.client.__file__).parent.glob("*.py"):
        assert not re.search(r"^(import|from) httpx", file.read_text(), re.MULTILINE), file
