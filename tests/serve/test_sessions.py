"""Sessions over HTTP: what they remember is what a session alone remembers, also after a restart."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.core import SimulatedClock
from penstock.models.load import Model
from penstock.session import Session

TEXT = "def f(x):\n    return x + 1  # ümläut 日本語\n" * 8


def alone(model: Model) -> Session:
    return Session(model, "streaming-llm", 32, path="eager")


def ask(http: httpx.Client, id: str, question: str | None, **body: Any) -> str:
    """The text of a streamed answer, with the order of its events checked."""
    with http.stream("POST", f"/v1/sessions/{id}/ask", json={"question": question, **body}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    finish = [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]]
    assert finish[-1] in ("stop", "length")
    assert set(finish[:-1]) == {None}
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])


def wait_read(http: httpx.Client, id: str) -> dict[str, Any]:
    """The session when it has read what it was given, but for text whose tokens are not settled."""
    while True:
        now: dict[str, Any] = http.get(f"/v1/sessions/{id}").raise_for_status().json()
        if now["tokens_ingested"] == now["tokens"]:
            return now
        time.sleep(0.01)


def until(done: Callable[[], bool]) -> None:
    """Wait; what never comes is ended by the suite's own limit."""
    while not done():
        time.sleep(0.01)


def killed(running: Any, id: str) -> None:
    """Stop a server, as if it were killed: nothing is saved."""
    hosted = running.app.state.server.house.sessions[id]
    hosted.folder.journal.close()
    hosted.folder = None
    running.stop()


def create(http: httpx.Client, id: str | None = None) -> str:
    response = http.post("/v1/sessions", json={} if id is None else {"id": id})
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


@pytest.mark.parametrize("with_template", [False, True])
def test_a_session_is_a_session(
    serving: Callable[..., Any], model: Model, chat_model: Model, with_template: bool
) -> None:
    """Everything that can be done to a stream, in a row, with the count known before the model has read it."""
    chosen = chat_model if with_template else model
    http = serving(chosen).http
    id, session = create(http), alone(chosen)

    def both(expected: Any, got: Any) -> None:
        assert got == expected
        here = wait_read(http, id)
        assert (here["tokens"], here["tokens_ingested"]) == (session.tokens, session.tokens)

    data = TEXT.encode()

    def parts() -> Iterator[bytes]:
        for start in range(0, len(data), 7):  # cuts characters in two
            yield data[start : start + 7]

    told = http.post(f"/v1/sessions/{id}/append", content=parts()).json()
    session.feed(TEXT)
    both(len(data), told["bytes"])
    assert (told["tokens"], told["session_tokens"], told["session_bytes"]) == (
        session.tokens,
        session.tokens,
        len(data),
    )
    both("".join(session.reply("what is f?", max_new=12)), ask(http, id, "what is f?", max_tokens=12))
    lines = "".join(json.dumps(each) + "\n" for each in ["and then ", {"text": "import os\n"}, "x"])
    http.post(f"/v1/sessions/{id}/append", content=lines, headers={"content-type": "application/x-ndjson"})
    session.feed("and then import os\nx")
    sampled: dict[str, Any] = {"temperature": 0.9, "seed": 5}
    both("".join(session.reply(None, max_new=9, **sampled)), ask(http, id, None, max_tokens=9, **sampled))
    aside = "".join(session.reply("aside?", max_new=5, remember=False))
    both(aside, ask(http, id, "aside?", max_tokens=5, remember=False))
    other = http.post(f"/v1/sessions/{id}/fork", json={"id": "other"}).json()
    assert (other["id"], other["forked_from"], other["tokens"]) == ("other", id, session.tokens)
    branch = session.fork()
    branch.feed("only here ")
    http.post("/v1/sessions/other/append", content="only here ")
    assert ask(http, "other", "raw", raw=True, max_tokens=8) == "".join(branch.reply("raw", raw=True, max_new=8))
    both("".join(session.reply("raw", raw=True, max_new=8)), ask(http, id, "raw", raw=True, max_tokens=8))
    stop = "".join(session.fork().reply("stop", max_new=12))[2:4]
    both("".join(session.reply("stop", max_new=12, stop=[stop])), ask(http, id, "stop", max_tokens=12, stop=stop))
    session.truncate(0)
    http.post(f"/v1/sessions/{id}/truncate", json={"tokens": 0})
    session.feed("anew")
    http.post(f"/v1/sessions/{id}/append", content="anew")
    both("".join(session.reply("who?", max_new=6)), ask(http, id, "who?", max_tokens=6))


def test_life_of_a_session(serving: Callable[..., Any], model: Model) -> None:
    http = serving(model).http
    assert http.get("/v1/sessions").json() == {"object": "list", "data": []}
    id = create(http, "my-stream")
    assert http.post("/v1/sessions", json={"id": id}).status_code == 409
    [listed] = http.get("/v1/sessions").json()["data"]
    assert set(listed) >= {
        "id", "tokens", "tokens_ingested", "bytes_pending", "memory_bytes", "lag_ms", "loss", "place",
    }  # fmt: skip
    assert http.post(f"/v1/sessions/{id}/save").json()["error"]["code"] == "no_state"
    assert http.post(f"/v1/sessions/{id}/truncate", json={"tokens": 9}).status_code == 400
    assert http.post(f"/v1/sessions/{id}/ask", json={}).status_code == 400
    assert http.delete(f"/v1/sessions/{id}").json()["deleted"] is True
    for call in ("append", "ask", "fork", "truncate", "save"):
        assert http.post(f"/v1/sessions/{id}/{call}").status_code in (400, 404)
    assert http.get(f"/v1/sessions/{id}").json()["error"]["code"] == "session_not_found"


def test_an_evicted_length_is_refused_and_nothing_changes(serving: Callable[..., Any], model: Model) -> None:
    http = serving(model).http
    id = create(http)
    tokens = http.post(f"/v1/sessions/{id}/append", content=TEXT).json()["session_tokens"]
    refused = http.post(f"/v1/sessions/{id}/truncate", json={"tokens": 8})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_exact")
    assert http.get(f"/v1/sessions/{id}").json()["tokens"] == tokens


def test_a_restart_finds_everything(serving: Callable[..., Any], chat_model: Model, tmp_path: Path) -> None:
    """Saved, half saved, forked, never used, deleted: afterwards every session goes on as if nothing had been."""
    first = serving(chat_model, tmp_path)
    http, session = first.http, alone(chat_model)
    for id in ("a", "unused", "gone"):
        create(http, id)
    http.delete("/v1/sessions/gone")
    http.post("/v1/sessions/a/append", content=TEXT)
    session.feed(TEXT)
    assert ask(http, "a", "q1", max_tokens=7, seed=2, temperature=1) == "".join(
        session.reply("q1", max_new=7, seed=2, temperature=1)
    )
    saved = http.post("/v1/sessions/a/save").json()
    assert saved["bytes"] > 0
    http.post("/v1/sessions/a/append", content="tail é".encode()[:-1])
    http.post("/v1/sessions/a/fork", json={"id": "b"})
    session.feed("tail é".encode()[:-1])
    branch = session.fork()
    before = {s["id"]: s for s in http.get("/v1/sessions").json()["data"]}
    first.stop()
    second = serving(chat_model, tmp_path)
    after = {s["id"]: s for s in second.http.get("/v1/sessions").json()["data"]}
    assert set(after) == {"a", "b", "unused"}
    for id in after:
        assert [after[id][k] for k in ("tokens", "bytes", "created")] == [
            before[id][k] for k in ("tokens", "bytes", "created")
        ]
    for id, reference in (("a", session), ("b", branch)):
        second.http.post(f"/v1/sessions/{id}/append", content="é".encode()[-1:] + b" end")
        reference.feed("é".encode()[-1:] + b" end")
        assert ask(second.http, id, "q2", max_tokens=9) == "".join(reference.reply("q2", max_new=9))
    assert ask(second.http, "unused", "q", max_tokens=3) == "".join(alone(chat_model).reply("q", max_new=3))


def test_another_model_and_another_server_are_kept_out(
    serving: Callable[..., Any], model: Model, tmp_path: Path
) -> None:
    from penstock.errors import UsageError
    from penstock.serve.house import House

    first = serving(model, tmp_path)
    create(first.http, "a")
    with pytest.raises(UsageError, match="another server"):
        House(None, model, tmp_path)
    first.stop()
    about = tmp_path / "sessions" / "a" / "about.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "model": "0" * 16}))
    second = serving(model, tmp_path)
    assert second.http.get("/v1/sessions").json()["data"] == []
    assert about.exists()
    assert second.http.post("/v1/sessions", json={"id": "a"}).status_code == 409
    assert "penstock_lost_sessions 1.0" in second.http.get("/metrics").text


def test_text_may_come_while_an_answer_is_spoken(serving: Callable[..., Any], model: Model) -> None:
    """It is acknowledged at once, and stands behind the answer."""
    http, session = serving(model).http, alone(model)
    id = create(http)
    answer: list[str] = []
    speaker = threading.Thread(target=lambda: answer.append(ask(http, id, TEXT, max_tokens=200)))
    speaker.start()
    until(lambda: http.get(f"/v1/sessions/{id}").json()["answering"] > 0)
    assert http.post(f"/v1/sessions/{id}/append", content="more").status_code == 200
    speaker.join()
    assert answer == ["".join(session.reply(TEXT, max_new=200))]
    session.feed("more")
    assert ask(http, id, "?", max_tokens=5) == "".join(session.reply("?", max_new=5))


def test_who_leaves_in_the_middle_leaves_what_he_read(serving: Callable[..., Any], model: Model) -> None:
    http = serving(model).http
    id = create(http)
    with http.stream("POST", f"/v1/sessions/{id}/ask", json={"question": "go", "max_tokens": 4000}) as response:
        lines = response.iter_lines()
        for _ in range(12):
            next(lines)
    until(lambda: http.get(f"/v1/sessions/{id}").json()["answering"] == 0)
    here = wait_read(http, id)
    assert 0 < here["tokens"] < 2000
    assert ask(http, id, "and now?", max_tokens=4)


def test_numbers_for_prometheus(serving: Callable[..., Any], model: Model, tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    http = serving(model, tmp_path).http
    id = create(http)
    http.post(f"/v1/sessions/{id}/append", content="x" * 100)
    ask(http, id, "y", max_tokens=3)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
    }
    assert found["penstock_appended_bytes_total",] == 100
    assert found["penstock_answers_total", "length"] == 1
    assert found["penstock_tokens_total", "answer"] == 3
    assert found["penstock_sessions", "device"] == 1
    assert found["penstock_first_piece_seconds_count",] == 1
    assert found["penstock_requests_total", "/v1/sessions/{id}/append", "200"] == 1
    health = http.get("/health").json()
    assert (health["status"], health["sessions"]) == ("ok", 1)


def test_a_deadline_ends_an_answer_where_it_is(serving: Callable[..., Any], model: Model, tmp_path: Path) -> None:
    """By the engine's clock, which moves a second with each step here; the next server has what was answered."""
    first = serving(model, tmp_path)
    engine, id = first.app.state.server.engine, create(first.http)
    engine.clock = clock = SimulatedClock()
    step = engine.runner.step

    def slow(*args: Any, **options: Any) -> Any:
        clock.sleep(1.0)
        return step(*args, **options)

    engine.runner.step = slow
    body = {"question": "go on", "max_tokens": 400, "deadline": 9.0, "stream": False}
    [choice] = first.http.post(f"/v1/sessions/{id}/ask", json=body).json()["choices"]
    assert choice["finish_reason"] == "length"
    found = first.http.get(f"/v1/sessions/{id}").json()
    assert 0 < found["tokens"] < 30
    assert (found["pace"]["deadlines_met"], found["pace"]["deadlines_missed"]) == (0, 1)
    assert 'penstock_deadlines_total{met="no"} 1.0' in first.http.get("/metrics").text
    killed(first, id)
    second = serving(model, tmp_path)
    assert wait_read(second.http, id)["tokens"] == found["tokens"]


def test_a_replayed_answer_is_what_its_reader_was_told(
    serving: Callable[..., Any], model: Model, tmp_path: Path
) -> None:
    """Once it was asked anew: in bfloat16, in other company, one session of twenty then went on from other words."""
    first = serving(model, tmp_path)
    engine, id = first.app.state.server.engine, create(first.http)
    step = engine.runner.step
    engine.runner.step = lambda *args, **options: step(*args, **options).roll(1, -1)  # as if it were rounded otherwise
    for question in ("one?", "two?"):
        ask(first.http, id, question, max_tokens=5)
    log = first.app.state.server.house.sessions[id].stream.core.log
    killed(first, id)
    second = serving(model, tmp_path)
    wait_read(second.http, id)
    again = second.app.state.server.house.sessions[id].stream.core.log
    assert (again.count, again.digest) == (log.count, log.digest)


def test_a_name_is_free_when_its_files_are_gone(serving: Callable[..., Any], model: Model, tmp_path: Path) -> None:
    """A session made while one of its name was deleted met the files of that one: a full disk, it was told."""
    running = serving(model, tmp_path)
    house = running.app.state.server.house
    hosted = house.sessions[create(running.http, "a")]
    close, told = hosted.close, []

    def slowly(delete: bool) -> None:
        told.append(running.http.post("/v1/sessions", json={"id": "a"}).json()["error"]["code"])
        close(delete=delete)

    hosted.close = slowly
    house.delete(hosted)
    assert told == ["exists"]
    house.delete(house.get(create(running.http, "a"), ""))
    again = create(running.http, "a")
    house.delete(hosted)  # by somebody who was late
    assert running.http.get(f"/v1/sessions/{again}").is_success
