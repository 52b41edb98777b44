"""The official client's Realtime connection against the server, unmodified, and what a plain socket may do to it."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from penstock.models.load import Model
from penstock.serve.access import Access, Caller, _hash
from penstock.serve.http import Limits
from penstock.session import Session

EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
ANSWER = [
    "response.created", "rate_limits.updated", "response.output_item.added", "conversation.item.added",
    "response.content_part.added", "response.output_text.delta", "response.output_text.done",
    "response.content_part.done", "conversation.item.done", "response.output_item.done", "response.done",
]  # fmt: skip


def client(address: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, **options)


def user(text: str, **more: Any) -> Any:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}], **more}


def until(connection: Any, kind: str) -> list[Any]:
    """Events up to one of a kind; each is what the client's own types say, and none is an error unless it is that."""
    events: list[Any] = []
    while not events or events[-1].type != kind:
        events.append(connection.recv())
        assert kind == "error" or events[-1].type != "error", events[-1]
        EVENT.validate_python(events[-1].to_dict())
    return events


def alone(model: Model) -> Session:
    return Session(model, "streaming-llm", 32, path="eager")


def told(session: Session, *parts: str) -> None:
    """Parts as a connection puts them: token borders between them."""
    from penstock.serve.realtime.script import Part, ids_of

    given = [Part(part, False, i > 0 or session.tokens > 0) for i, part in enumerate(parts)]
    session.ingest(session._text().flush() + ids_of(session.model.tokenizer, given))


def test_the_official_client(serving: Callable[..., Any], model: Model) -> None:
    """Text in, text out, in order, equal to a session alone; then more input while it speaks, a cut and a goodbye."""
    running = serving(model, budget=64)
    with client(running.address).realtime.connect(model=model.name) as line:
        created = until(line, "session.created")[0]
        assert created.session.output_modalities == ["text"]
        line.session.update(session={"type": "realtime", "max_output_tokens": 6, "instructions": "be brief"})
        updated = until(line, "session.updated")[-1].session
        assert (updated.max_output_tokens, updated.instructions) == (6, "be brief")
        line.conversation.item.create(item=user("what is f(x)?", id="first"))
        assert [e.type for e in until(line, "conversation.item.done")] == [
            "conversation.item.added", "conversation.item.done",
        ]  # fmt: skip
        line.response.create()
        events = until(line, "response.done")
        kinds = [e.type for e in events]
        assert list(dict.fromkeys(kinds)) == ANSWER
        text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        session = Session(model, "streaming-llm", 64, path="eager")
        told(session, "be brief", "\n", "what is f(x)?")
        prompt = session.tokens
        assert text == "".join(session.reply(None, raw=True, max_new=6))
        done = events[-1].response
        assert (done.status, done.status_details.reason) == ("incomplete", "max_output_tokens")
        assert done.output[0].content[0].text == text
        assert (done.usage.input_tokens, done.usage.output_tokens) == (prompt, 6)
        assert events[3].previous_item_id == "first"

        line.response.create(response={"max_output_tokens": 3000})
        until(line, "response.output_text.delta")
        line.conversation.item.create(item=user("meanwhile", id="second"))
        until(line, "conversation.item.done")
        line.response.create()
        assert until(line, "error")[-1].error.code == "conversation_already_has_active_response"
        line.response.cancel()
        ended = until(line, "response.done")[-1].response
        assert (ended.status, ended.status_details.reason) == ("cancelled", "client_cancelled")
        line.conversation.item.retrieve(item_id="second")
        assert until(line, "conversation.item.retrieved")[-1].item.content[0].text == "meanwhile"
    until_gone(running)


def until_gone(running: Any) -> None:
    import time

    while running.http.get("/v1/sessions").json()["data"]:
        time.sleep(0.01)


def test_the_asynchronous_client_and_its_neighbours(server: Any, model: Model) -> None:
    """Six connections at once: each is answered as if it were alone."""

    async def one(api: openai.AsyncOpenAI, number: int) -> str:
        async with api.realtime.connect(model=model.name) as line:
            await line.session.update(session={"type": "realtime", "max_output_tokens": 5})
            await line.conversation.item.create(item=user(f"number {number} is"))
            await line.response.create()
            text = ""
            async for event in line:
                assert event.type != "error"
                text += event.delta if event.type == "response.output_text.delta" else ""
                if event.type == "response.done":
                    break
            return text

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as api:
            return await asyncio.gather(*(one(api, number) for number in range(6)))

    expected = []
    for number in range(6):
        session = alone(model)
        told(session, f"number {number} is")
        expected.append("".join(session.reply(None, raw=True, max_new=5)))
    assert asyncio.run(run()) == expected


@pytest.mark.parametrize("with_template", [False, True])
def test_what_is_taken_back_was_never_said(
    serving: Callable[..., Any], model: Model, chat_model: Model, with_template: bool
) -> None:
    """Delete, insert and cut: the answer afterwards is that of a conversation which was so from the beginning."""
    chosen = chat_model if with_template else model
    running = serving(chosen, budget=256)
    short: Any = {"type": "realtime", "max_output_tokens": 4}
    with client(running.address).realtime.connect(model=chosen.name) as changed:
        changed.session.update(session=short)
        for id in ("a", "b", "c"):
            changed.conversation.item.create(item=user(f"line {id}", id=id))
        changed.conversation.item.delete(item_id="b")
        assert until(changed, "conversation.item.deleted")[-1].item_id == "b"
        changed.conversation.item.create(item=user("first of all", id="z"), previous_item_id="root")
        assert until(changed, "conversation.item.done")[-1].previous_item_id is None
        changed.response.create()
        answer = until(changed, "response.done")[-1].response.output[0]
        changed.conversation.item.truncate(item_id=answer.id, content_index=0, audio_end_ms=0)
        assert until(changed, "conversation.item.truncated")[-1].audio_end_ms == 0
        changed.conversation.item.retrieve(item_id=answer.id)
        kept = until(changed, "conversation.item.retrieved")[-1].item.content[0].text
        assert answer.content[0].text.startswith(kept)
        changed.conversation.item.truncate(item_id=answer.id, content_index=0, audio_end_ms=10**9)
        assert until(changed, "error")[-1].error.param in ("audio_end_ms", "item_id")
        changed.conversation.item.create(item=user("and now?"))
        changed.response.create()
        got = until(changed, "response.done")[-1].response
    with client(running.address).realtime.connect(model=chosen.name) as straight:
        straight.session.update(session=short)
        for text in ("first of all", "line a", "line c"):
            straight.conversation.item.create(item=user(text))
        spoken = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": kept}]}
        if with_template:  # without one a line end would come before it
            straight.conversation.item.create(item=spoken)  # type: ignore[arg-type]
            straight.conversation.item.create(item=user("and now?"))
            straight.response.create()
            same = until(straight, "response.done")[-1].response
            assert got.output[0].content[0].text == same.output[0].content[0].text
            assert got.usage.input_tokens == same.usage.input_tokens
        else:
            session = Session(chosen, "streaming-llm", 256, path="eager")
            told(session, "first of all", "\n", "line a", "\n", "line c", kept, "\n", "and now?")
            assert got.output[0].content[0].text == "".join(session.reply(None, raw=True, max_new=4))


def test_memory_and_truncation(serving: Callable[..., Any], model: Model) -> None:
    """Far beyond the memory: auto forgets, disabled refuses, retention_ratio begins anew with the newest items."""
    running = serving(model, budget=32)
    with client(running.address).realtime.connect(model=model.name) as line:
        line.session.update(session={"type": "realtime", "max_output_tokens": 3})
        for number in range(40):
            line.conversation.item.create(item=user(f"line number {number} of many", id=f"i{number}"))
        line.response.create()
        usage = until(line, "response.done")[-1].response.usage
        assert usage.input_tokens == 32
        line.conversation.item.delete(item_id="i20")  # long forgotten: the rest is read anew
        until(line, "conversation.item.deleted")
        line.session.update(session={"type": "realtime", "truncation": "disabled"})
        line.response.create()
        assert until(line, "error")[-1].error.code == "context_length_exceeded"
        ratio: Any = {"type": "retention_ratio", "retention_ratio": 0.5}
        line.session.update(session={"type": "realtime", "truncation": ratio})
        line.response.create()
        usage = until(line, "response.done")[-1].response.usage
        assert 0 < usage.input_tokens <= 16
        sessions = running.http.get("/v1/sessions").json()["data"]
        assert sessions[0]["tokens"] <= 16 + 3


def test_aside_and_alone(serving: Callable[..., Any], model: Model) -> None:
    """Responses outside of the conversation leave nothing in it; `input` replaces it."""
    running = serving(model, budget=64)
    with client(running.address).realtime.connect(model=model.name) as line:
        line.conversation.item.create(item=user("one two", id="a"))
        given: dict[str, Any] = {"conversation": "none", "max_output_tokens": 5, "metadata": {"topic": "x"}}
        line.response.create(response=given)  # type: ignore[arg-type]
        events = until(line, "response.done")
        assert not any(e.type == "conversation.item.added" for e in events[3:])
        aside = events[-1].response
        assert (aside.conversation_id, aside.metadata) == (None, {"topic": "x"})
        session = Session(model, "streaming-llm", 64, path="eager")
        told(session, "one two")
        tokens = session.tokens
        expected = "".join(session.reply(None, raw=True, max_new=5))
        assert aside.output[0].content[0].text == expected
        reference: Any = {"type": "item_reference", "id": "a"}
        line.response.create(response={**given, "input": [reference]})  # type: ignore[arg-type]
        assert until(line, "response.done")[-1].response.output[0].content[0].text == expected
        [only] = running.http.get("/v1/sessions").json()["data"]
        assert only["tokens"] == tokens


def test_a_kept_session_goes_on(serving: Callable[..., Any], model: Model, tmp_path: Path) -> None:
    """`session=ID` outlives its connection and its server; nobody else has it meanwhile."""
    query = {"session": "mine"}
    running = serving(model, tmp_path, budget=64)
    with client(running.address).realtime.connect(model=model.name, extra_query=query) as line:
        line.session.update(session={"type": "realtime", "max_output_tokens": 3})
        line.conversation.item.create(item=user("one two"))
        line.response.create()
        first = until(line, "response.done")[-1].response.output[0].content[0].text
        with pytest.raises(InvalidStatus, match="409"), client(running.address).realtime.connect(extra_query=query):
            pass
    running.stop()
    running = serving(model, tmp_path, budget=64)
    with client(running.address).realtime.connect(model=model.name, extra_query=query) as line:
        line.conversation.item.create(item=user("three"))
        line.response.create(response={"max_output_tokens": 3})
        second = until(line, "response.done")[-1].response.output[0].content[0].text
    session = Session(model, "streaming-llm", 64, path="eager")
    told(session, "one two")
    assert first == "".join(session.reply(None, raw=True, max_new=3))
    told(session, "\n", "three")
    assert second == "".join(session.reply(None, raw=True, max_new=3))


def test_who_may_connect(serving: Callable[..., Any], model: Model) -> None:
    tokens = {_hash("sk-a"): Caller("alice", 3)}
    running = serving(model, access=Access(tokens), limits=Limits(event_bytes=1000, drain_seconds=5))
    url = running.address.replace("http", "ws") + "/v1/realtime"
    bearer = {"Authorization": "Bearer sk-a"}
    for headers, query, status in (
        ({}, "", 401), ({**bearer, "Origin": "http://evil.example"}, "", 403), (bearer, "?model=gpt", 404),
    ):  # fmt: skip
        with pytest.raises(InvalidStatus) as caught:
            connect(url + query, additional_headers=headers)
        assert caught.value.response.status_code == status
        assert json.loads(caught.value.response.body)["error"]["message"].endswith(".")
    with connect(url, subprotocols=["realtime", "openai-insecure-api-key.sk-a"]) as line:  # type: ignore[list-item]
        assert line.subprotocol == "realtime"
        assert json.loads(line.recv())["type"] == "session.created"
        line.send(json.dumps({"type": "conversation.item.create", "item": user("x")}))
        assert [json.loads(line.recv())["type"] for _ in range(2)][-1] == "conversation.item.done"
        create = json.dumps({"type": "response.create", "response": {"max_output_tokens": 1}})
        line.send(create)
        rates = [json.loads(line.recv()) for _ in range(2)][-1]["rate_limits"]
        assert rates == [{"name": "requests", "limit": 3, "remaining": 0, "reset_seconds": rates[0]["reset_seconds"]}]
        while json.loads(line.recv())["type"] != "response.done":
            pass
        line.send(create)
        assert json.loads(line.recv())["error"]["code"] == "rate_limit_exceeded"
        line.send("x" * 1001)
        with pytest.raises(Exception, match="1009"):
            line.recv()


def test_a_stopping_server_says_goodbye(serving: Callable[..., Any], model: Model) -> None:
    running = serving(model)
    with connect(running.address.replace("http", "ws") + "/v1/realtime") as line:
        line.send(json.dumps({"type": "conversation.item.create", "item": user("x")}))
        line.send(json.dumps({"type": "response.create"}))
        while json.loads(line.recv())["type"] != "response.output_text.delta":
            pass
        import threading

        stopping = threading.Thread(target=running.stop)
        stopping.start()
        kinds = []
        with pytest.raises(Exception, match="1001"):  # noqa: PT012
            while True:
                kinds.append(json.loads(line.recv())["type"])
        stopping.join()
        assert kinds[-1] == "response.done"


def test_a_session_deleted_while_it_answers(serving: Callable[..., Any], model: Model, caplog: Any) -> None:
    """Once the connection stayed open until its client said something, and the answer's task failed in the log."""
    running = serving(model, budget=64)
    for _ in range(8):
        with connect(f"{running.address.replace('http', 'ws')}/v1/realtime?model={model.name}") as line:
            line.send(json.dumps({"type": "conversation.item.create", "item": user("go on")}))
            line.send(json.dumps({"type": "response.create"}))
            while "delta" not in json.loads(line.recv())["type"]:
                pass
            for each in running.http.get("/v1/sessions").json()["data"]:
                running.http.delete(f"/v1/sessions/{each['id']}")
            with pytest.raises(ConnectionClosedError, match="1008"):
                for _ in line:
                    pass
    gc.collect()
    assert not [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
