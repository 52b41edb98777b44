"""The Realtime protocol without a server: events in, events out, a stream that is a list of texts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from penstock.core import SimulatedClock
from penstock.models.chat import Turns
from penstock.serve.asked import Finished
from penstock.serve.realtime.config import first_session, merged, updated
from penstock.serve.realtime.items import Item, Items
from penstock.serve.realtime.outputs import Admit, Flow, Put, Release, Send, Speak, Stop
from penstock.serve.realtime.protocol import Facts, Protocol
from penstock.serve.realtime.script import Part, Placed, Script
from penstock.serve.refusal import Refusal

EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
TURNS = Turns("<user>", "</user><bot>", "</bot><user>")


class Bench:
    """Runs flows; a token is a character, and what lies more than `window` back cannot be cut off."""

    def __init__(self, window: int | None = None, turns: Turns | None = None, items: Items | None = None) -> None:
        numbers = itertools.count()
        self.clock = SimulatedClock()
        facts = Facts("sess_1", "m", window, turns)
        self.protocol = Protocol(facts, self.clock, lambda prefix: f"{prefix}_{next(numbers)}", items)
        self.window, self.stream, self.most = window, "", 0
        self.sent: list[dict[str, Any]] = []
        self.speaking: list[str] = []
        self.stopped: set[str] = set()
        self.seats: set[str] = set()
        self.answers = 0
        self.inside = ""  # the answer in the stream under way: its text comes in when it is over
        self.behind = ""  # what was put meanwhile
        self.run(self.protocol.begin())

    def run(self, flow: Flow) -> list[dict[str, Any]]:
        start, result, failure = len(self.sent), None, None
        while True:
            try:
                out = flow.send(result) if failure is None else flow.throw(failure)
            except StopIteration:
                break
            result = failure = None
            try:
                result = self.do(out)
            except Refusal as refusal:
                failure = refusal
        return self.sent[start:]

    def do(self, out: Any) -> Any:
        if isinstance(out, Send):
            event = json.loads(json.dumps(out.event))
            EVENT.validate_python(event)
            self.sent.append(event)
        elif isinstance(out, Put):
            return self.put(out)
        elif isinstance(out, Admit):
            self.seats.add(out.response_id)
            return []
        elif isinstance(out, Speak):
            self.speaking.append(out.response_id)
        elif isinstance(out, Stop):
            self.stopped.add(out.response_id)
        elif isinstance(out, Release):
            self.seats.discard(out.response_id)
        return None

    def put(self, out: Put) -> Placed:
        if out.to is not None:
            assert not self.inside
            assert out.expected == len(self.stream)
            if out.to > 0 and self.window is not None and self.most - out.to > 0 and self.most > self.window:
                raise Refusal("forgotten", 409, code="not_exact")
            self.stream = self.stream[: out.to]
            self.most = out.to
        ends, texts = [], ["".join(part.text for part in group) for group in out.groups]
        start = len(self.stream) + len(self.behind)
        for text in texts:
            ends.append((ends[-1] if ends else start) + len(text))
        if self.protocol.active is not None and self.protocol.active.id in self.speaking:
            self.behind += "".join(texts)
        else:
            self.stream += "".join(texts)
        self.most = max(self.most, len(self.stream))
        return Placed(start, ends, self.answers)

    def tell(self, event: Any) -> list[dict[str, Any]]:
        return self.run(self.protocol.receive(event if isinstance(event, str) else json.dumps(event)))

    def say(self, text: str) -> list[dict[str, Any]]:
        self.clock.sleep(0.1)
        id = self.speaking[0]
        if self.protocol.active is not None and id == self.protocol.active.id:
            self.inside += text
        return self.run(self.protocol.said(id, text))

    def end(self, reason: str = "stop") -> list[dict[str, Any]]:
        id = self.speaking[0]
        response = self.protocol.responses[id]
        reason = "cancelled" if id in self.stopped else reason
        kept = 0
        if response is self.protocol.active:
            kept = len(self.inside)
            self.stream += self.inside + self.behind
            self.inside = self.behind = ""
            self.answers += 1
            self.most = max(self.most, len(self.stream))
        self.speaking.pop(0)
        told = self.run(self.protocol.finished(id, Finished(reason, 0, 3, kept, self.answers)))
        self.seats.discard(id)
        return told


def user(text: str, **more: Any) -> dict[str, Any]:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}], **more}
    return {"type": "conversation.item.create", "item": item}


# -- any events, in any order ----------------------------------------------------------------------------------------

IDS = st.sampled_from(["a", "b", "c", "nobody"])
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
GOOD = st.one_of(
    st.builds(lambda text, id: user(text, id=id), st.text("xyz ", max_size=6), IDS),
    st.builds(lambda text, at: {**user(text), "previous_item_id": at}, st.text("xyz", max_size=6), IDS),
    st.builds(lambda id: {"type": "conversation.item.delete", "item_id": id}, IDS),
    st.builds(lambda id: {"type": "conversation.item.retrieve", "item_id": id}, IDS),
    st.builds(
        lambda ms: {"type": "conversation.item.truncate", "item_id": "last", "content_index": 0, "audio_end_ms": ms},
        st.integers(0, 300),
    ),
    st.builds(
        lambda given: {"type": "response.create", "response": given},
        st.sampled_from(
            [
                {},
                {"conversation": "none"},
                {"instructions": "hm"},
                {"input": [{"type": "item_reference", "id": "a"}]},
            ]
        ),
    ),
    st.just({"type": "response.cancel"}),
    st.builds(
        lambda told: {"type": "session.update", "session": {"type": "realtime", **told}},
        st.sampled_from(
            [
                {"instructions": "be"},
                {"truncation": {"type": "retention_ratio", "retention_ratio": 0.5}},
                {"truncation": "disabled"},
                {"truncation": None},
                {"tools": [{}]},
            ]
        ),
    ),
)
EVENTS = st.one_of(
    GOOD, GOOD, GOOD,
    st.tuples(GOOD, st.sampled_from(["item", "type", "response", "session", "wings", "event_id"]), JUNK).map(
        lambda told: {**told[0], told[1]: told[2]}
    ),
    st.sampled_from(["say", "end", "length", "not json", "[]", '{"type": "input_audio_buffer.commit"}']),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.lists(EVENTS, max_size=25), st.sampled_from([None, 12, 60]), st.sampled_from([None, TURNS]),
    st.sampled_from([1000, 4]),
)  # fmt: skip
def test_whatever_comes_the_protocol_holds(
    events: Sequence[Any], window: int | None, turns: Turns | None, most: int
) -> None:
    """Each event is answered; errors change nothing; what items say of the stream is what stands there."""
    bench = Bench(window, turns, Items(most))
    for event in events:
        if event in ("say", "end", "length"):
            if bench.speaking:
                bench.say("ok.") if event == "say" else bench.end("stop" if event == "end" else "length")
        else:
            if isinstance(event, dict) and event.get("item_id") == "last":
                spoken = [item.id for item in bench.protocol.conversation.items.all if item.is_spoken]
                event = {**event, "item_id": spoken[-1] if spoken else "nobody"}
            before, length = bench.protocol.session, len(bench.stream)
            told = bench.tell(event)
            assert told or (isinstance(event, dict) and event["type"] == "response.cancel"), event
            if told and told[0]["type"] == "error":
                assert len(told) == 1
                assert bench.protocol.session == before
                assert len(bench.stream) >= length  # nothing was cut
        assert bench.seats == set(bench.protocol.responses) == set(bench.speaking)
        items = bench.protocol.conversation.items.all
        assert len(items) <= most
        if not bench.speaking:
            assert bench.protocol.conversation.length == len(bench.stream)
            for item in items:
                if item.start is not None:
                    assert bench.stream[item.start : item.end].endswith(item.text)
    while bench.speaking:
        bench.end()
    check_order(bench.sent)


def check_order(sent: Sequence[dict[str, Any]]) -> None:
    """Every response has all of its events, each in its place."""
    ids = [event["event_id"] for event in sent]
    assert len(set(ids)) == len(ids)
    for created in [e for e in sent if e["type"] == "response.created"]:
        id = created["response"]["id"]
        mine = [e["type"] for e in sent if e.get("response_id") == id or e.get("response", {}).get("id") == id]
        assert [kind for kind in mine if kind != "response.output_text.delta"] == [
            "response.created", "response.output_item.added", "response.content_part.added",
            "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.done",
        ]  # fmt: skip
        deltas = "".join(
            e["delta"] for e in sent if e["type"] == "response.output_text.delta" and e["response_id"] == id
        )
        done = next(e for e in sent if e["type"] == "response.done" and e["response"]["id"] == id)["response"]
        assert done["output"][0]["content"][0]["text"] == deltas
        assert done["status"] in ("completed", "incomplete", "cancelled")
        assert done["usage"]["total_tokens"] == done["usage"]["input_tokens"] + done["usage"]["output_tokens"]


# -- one by one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [None, TURNS])
def test_taking_back_leaves_what_was_never_otherwise(turns: Turns | None) -> None:
    """Insert, delete and cut give the stream of a conversation that was so from the beginning."""
    bench = Bench(turns=turns)
    for id in "abc":
        bench.tell(user(f"line {id}", id=id))
    bench.tell({"type": "response.create"})
    bench.say("one ")
    bench.say("two ")
    bench.tell(user("meanwhile", id="d"))
    bench.end()
    spoken = bench.sent[-1]["response"]["output"][0]["id"]
    bench.tell({**user("new", id="n"), "previous_item_id": "a"})
    bench.tell({"type": "conversation.item.delete", "item_id": "b"})
    cut = {"type": "conversation.item.truncate", "item_id": spoken, "content_index": 0, "audio_end_ms": 50}
    assert bench.tell(cut)[-1]["type"] == "conversation.item.truncated"
    script = Script(turns)
    expected = [script.message("user", text) for text in ("line a", "new", "line c")]
    expected += [script.answer("one "), script.message("user", "meanwhile")]
    assert bench.stream == "".join(part.text for group in expected for part in group)


def test_what_the_memory_forgot_is_read_anew_or_refused() -> None:
    bench = Bench(window=10)
    for id in "abcd":
        bench.tell(user("x" * 6, id=id))
    assert bench.tell({"type": "conversation.item.delete", "item_id": "b"})[0]["type"] == "conversation.item.deleted"
    assert bench.stream == "\n".join(["x" * 6] * 3)
    short = Bench(window=10, items=Items(most_items=3))
    for id in "abcd":
        short.tell(user("x" * 6, id=id))
    [error] = short.tell({"type": "conversation.item.delete", "item_id": "c", "event_id": "mine"})
    assert (error["error"]["code"], error["error"]["event_id"]) == ("not_exact", "mine")
    [error] = short.tell({"type": "conversation.item.retrieve", "item_id": "a"})
    assert error["error"]["code"] == "item_not_found"


def test_instructions_are_told_when_they_are_new_or_forgotten() -> None:
    bench = Bench(window=40)
    bench.tell({"type": "session.update", "session": {"type": "realtime", "instructions": "be brief"}})
    for _ in range(3):
        bench.tell(user("0123456789"))
    assert bench.stream.count("be brief") == 1
    for _ in range(3):
        bench.tell(user("0123456789"))
    assert bench.stream.count("be brief") == 2


def test_truncation_is_the_memory_s() -> None:
    bench = Bench(window=40)
    for id in "abcdef":
        bench.tell(user(id * 9, id=id))
    bench.tell({"type": "session.update", "session": {"type": "realtime", "truncation": "disabled"}})
    [error] = bench.tell({"type": "response.create"})
    assert error["error"]["code"] == "context_length_exceeded"
    ratio = {"type": "retention_ratio", "retention_ratio": 0.5}
    bench.tell({"type": "session.update", "session": {"type": "realtime", "truncation": ratio}})
    bench.tell({"type": "response.create"})
    assert bench.stream == "e" * 9 + "\n" + "f" * 9
    bench.end()
    [gone] = bench.tell({"type": "conversation.item.delete", "item_id": "a"})
    assert gone["type"] == "conversation.item.deleted"


def test_updates_are_merged_field_by_field() -> None:
    session = first_session("s", "m")
    one = updated(session, {"type": "realtime", "audio": {"input": {"noise_reduction": {"type": "near_field"}}}})
    two = updated(one, {"type": "realtime", "audio": {"input": {"noise_reduction": {"strength": 0.5}}, "output": {}}})
    assert two["audio"]["input"]["noise_reduction"] == {"type": "near_field", "strength": 0.5}
    assert two["audio"]["output"] == session["audio"]["output"]
    three = updated(two, {"type": "realtime", "audio": {"input": {"noise_reduction": None}}})
    assert three["audio"]["input"] == session["audio"]["input"]
    vad = {"type": "server_vad", "threshold": 0.3}
    four = updated(three, {"type": "realtime", "audio": {"input": {"turn_detection": vad}}})
    semantic = {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}}
    assert updated(four, semantic)["audio"]["input"]["turn_detection"] == {"type": "semantic_vad"}
    assert updated({**session, "instructions": "x"}, {"type": "realtime", "instructions": None})["instructions"] == ""
    assert merged({"a": {"b": 1}, "c": 2}, {"a": {"d": 3}}) == {"a": {"b": 1, "d": 3}, "c": 2}
    for update, param in (
        ({}, "session.type"), ({"type": "transcription"}, "session.type"), ([], "session"),
        ({"type": "realtime", "output_modalities": ["audio"]}, "session.output_modalities"),
        ({"type": "realtime", "model": "other"}, "session.model"), ({"type": "realtime", "wings": 2}, "session.wings"),
        ({"type": "realtime", "tools": [{"type": "function"}]}, "session.tools"),
        ({"type": "realtime", "truncation": {"type": "retention_ratio", "retention_ratio": 2}}, "session.truncation"),
    ):  # fmt: skip
        with pytest.raises(Refusal) as caught:
            updated(session, update)
        assert str(caught.value.param).startswith(param)


@pytest.mark.parametrize(
    ("event", "code", "param"),
    [
        ("{", "invalid_json", None), ('{"type": "\\ud800"}', "invalid_json", None),
        ('{"a": NaN}', "invalid_json", None),
        ({}, "missing_required_parameter", "type"), ({"type": "session.delete"}, "invalid_value", "type"),
        ({"type": "input_audio_buffer.append", "audio": "AA"}, "unsupported_modality", "type"),
        (user("x", content=[{"type": "input_image"}]), "unsupported_modality", "item.content.0.type"),
        ({"type": "response.cancel"}, "response_cancel_not_active", "response_id"),
        ({"type": "response.create"}, "invalid_value", "response"),
        ({**user("x"), "previous_item_id": "nobody"}, "item_not_found", "previous_item_id"),
    ],
)  # fmt: skip
def test_mistakes_are_told_and_the_session_goes_on(event: Any, code: str, param: str | None) -> None:
    bench = Bench()
    [error] = bench.tell(event)
    assert (error["type"], error["error"]["code"], error["error"]["param"]) == ("error", code, param)
    assert error["error"]["message"].endswith(".")
    assert bench.tell(user("x"))[-1]["type"] == "conversation.item.done"


def test_what_was_heard_by_a_time() -> None:
    item = Item("i", "assistant", "")
    for ms, piece in ((0, "one "), (100, "two "), (200, "three")):
        item.said(piece, ms)
    assert [item.heard(ms) for ms in (0, 99, 100, 500)] == ["one ", "one ", "one two ", "one two three"]


def test_parts_know_what_they_follow() -> None:
    script = Script(TURNS)
    assert script.message("user", "a") == [Part("<user>", True), Part("a")]
    assert script.message("system", "b") == [Part("\n", False, True), Part("b", False, True)]
    assert script.answer("c") == [Part("</user><bot>", True), Part("c")]
    assert script.message("user", "d") == [Part("</bot><user>", True), Part("d")]
