"""The parts of the server that need no server: bodies, journal, tally, access, shapes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core import SimulatedClock
from penstock.errors import InputError, OutputError, SnapshotError
from penstock.models.load import Model
from penstock.serve.access import Access, Caller, read_tokens
from penstock.serve.bodies import BadLine, JsonLines, RawText, decoder_for
from penstock.serve.journal import Journal
from penstock.serve.refusal import Refusal, refusal_of
from penstock.serve.tally import Tally
from penstock.serve.wire import AskBody, ChatBody, checked
from penstock.session import Session

HOST = {"host": "127.0.0.1:8321"}


@given(st.lists(st.text()), st.lists(st.integers(1, 40), min_size=1))
def test_json_lines_do_not_depend_on_how_they_arrive(texts: list[str], cuts: list[int]) -> None:
    data = "\n".join(json.dumps(text if i % 2 else {"text": text}) for i, text in enumerate(texts))
    raw, out, decoder, at = data.encode(), b"", JsonLines(), 0
    for i in range(len(raw)):
        size = cuts[i % len(cuts)]
        out += decoder.push(raw[at : at + size])
        at += size
    out += decoder.end()
    assert out.decode() == "".join(texts)
    assert decoder.lines == len(texts)


@pytest.mark.parametrize("line", ["{", "3", "null", '{"text": 1}', '{"text": "a", "b": 1}', "[" * 100_000, '"\ud800'])
def test_a_bad_line_is_named_and_those_before_it_are_taken(line: str) -> None:
    decoder = JsonLines()
    with pytest.raises(BadLine, match="line 3") as caught:
        decoder.push(f'"a"\n\n"b"\n{line}\n"c"\n'.encode("utf-8", "surrogatepass"))
    assert caught.value.before == b"ab"
    assert caught.value.refusal.status == 400


def test_a_line_without_end_is_refused_before_it_is_held() -> None:
    decoder = JsonLines(longest=100)
    for _ in range(10):
        assert decoder.push(b'"aaaaaaaaa') == b""
    with pytest.raises(BadLine, match="longer than 100") as caught:
        decoder.push(b"a")
    assert caught.value.refusal.status == 413
    broken = JsonLines()
    assert broken.push(b'"cut') == b""
    with pytest.raises(Refusal, match="not JSON"):
        broken.end()


def test_content_types() -> None:
    assert isinstance(decoder_for(""), RawText)
    assert isinstance(decoder_for("text/plain; charset=utf-8"), RawText)
    assert isinstance(decoder_for("application/x-ndjson; charset=utf-8"), JsonLines)
    with pytest.raises(Refusal, match="not application/json"):
        decoder_for("application/json")


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=8), st.data())
def test_a_journal_that_was_cut_anywhere_keeps_its_whole_records(payloads: list[bytes], data: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder, ends = Path(name), []
        journal = Journal(folder, sync=False)
        for i, payload in enumerate(payloads):
            assert journal.write("append", {"i": i}, payload) == i
            ends.append(journal.bytes)
        journal.close()
        [file] = folder.iterdir()
        cut = data.draw(st.integers(0, ends[-1]))
        noise = data.draw(st.binary(max_size=9)) if cut < ends[-1] else b""
        file.write_bytes(file.read_bytes()[:cut] + noise)
        again = Journal(folder, sync=False)
        whole = sum(end <= cut for end in ends)
        kept = again.read(0)
        assert [(r.number, r.kind, r.head, r.payload) for r in kept[:whole]] == [
            (i, "append", {"i": i}, payloads[i]) for i in range(whole)
        ]
        if not noise:
            assert len(kept) == whole
            assert again.write("append", {}, b"next") == whole
            again.close()
            assert [r.payload for r in Journal(folder).read(0)] == [*payloads[:whole], b"next"]


def test_a_journal_is_dropped_by_whole_files_and_damage_is_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for i in range(3):
        journal.write("append", {}, b"x" * i)
        journal.rotate()
    journal.drop(2)
    assert [path.name for path in tmp_path.iterdir()] == ["journal-000000000002"]
    assert journal.write("append", {}, b"end") == 3
    assert [record.number for record in Journal(tmp_path).read(2)] == [2, 3]
    with pytest.raises(SnapshotError, match="lacks records"):
        Journal(tmp_path).read(0)
    first = tmp_path / "journal-000000000002"
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(SnapshotError, match="damaged in its middle"):
        Journal(tmp_path).read(2)


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    journal = Journal(tmp_path)
    journal.write("append", {}, b"before")
    real = os.write

    def half(handle: int, data: Any) -> int:
        real(handle, bytes(data)[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OutputError, match="No space left"):
        journal.write("append", {}, b"lost")
    monkeypatch.setattr(os, "write", real)
    assert journal.write("append", {}, b"after") == 1
    journal.close()
    assert [record.payload for record in Journal(tmp_path).read(0)] == [b"before", b"after"]


@pytest.mark.parametrize("with_template", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_tally_counts_what_a_session_counts(
    model: Model, chat_model: Model, with_template: bool, seed: int
) -> None:
    """Random appends, questions, cuts: the number of tokens is known without a step of the model."""
    chosen, rng = (chat_model if with_template else model), random.Random(seed)
    session, tally = Session(chosen, "dense", None, path="eager"), Tally(chosen.tokenizer)
    data = "words and wörds, 日本 (x == 1)\n\n".encode()
    for _ in range(25):
        what = rng.randrange(8)
        if what < 4:
            piece = data[(at := rng.randrange(len(data))) : at + rng.randrange(20)]
            session.feed(piece)
            tally.append(piece)
        elif what < 6:
            question, raw = rng.choice(["why?", "", "a b", None]), rng.random() < 0.3
            if question is None and session.tokens == 0:
                continue
            before = session.tokens
            asked = tally.ask(question, raw)
            for _ in session.reply(question, raw=raw, max_new=3):
                pass
            tally.answer(session.tokens - before - asked)
        elif session.tokens:
            length = rng.choice([0, session.tokens, max(0, session.tokens - rng.randrange(9))])
            session.truncate(length)
            tally.truncate(length)
        tally = Tally(chosen.tokenizer, json.loads(json.dumps(tally.state_dict())))
        assert tally.tokens == session.tokens
        assert session.encoder is not None
        assert tally.state_dict()["encoder"] == session.encoder.state_dict()


def test_tokens_are_read_and_mistakes_named(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# ours\nsk-a name=alice requests=2\n\nsk-b   # nameless\n")
    access = Access(read_tokens(file), clock=SimulatedClock())
    assert access.admit("/v1/models", {**HOST, "authorization": "Bearer sk-a"}, "") == Caller("alice", 2)
    nameless = access.admit("/v1/models", {**HOST, "authorization": "bearer  sk-b"}, "")
    assert nameless.name
    assert "sk-b" not in nameless.name
    for line in ("sk-a wings=2", "sk-a requests=0", "sk-a name=", "sk-a\nsk-a"):
        file.write_text(line)
        with pytest.raises(InputError, match="line"):
            read_tokens(file)
    file.write_text("# nobody\n")
    with pytest.raises(InputError, match="no tokens"):
        read_tokens(file)


def test_who_is_not_admitted(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("sk-a name=alice requests=2\n")
    clock = SimulatedClock()
    access = Access(read_tokens(file), clock=clock)
    for headers in ({}, {"authorization": "Bearer"}, {"authorization": "Bearer sk-b"}, {"authorization": "Basic sk-a"}):
        with pytest.raises(Refusal) as caught:
            access.admit("/v1/models", {**HOST, **headers}, "")
        assert caught.value.status == 401
    assert access.admit("/health", HOST, "") == Caller()
    alice = {**HOST, "authorization": "Bearer sk-a"}
    for _ in range(2):
        access.admit("/v1/models", alice, "")
    with pytest.raises(Refusal) as caught:
        access.admit("/v1/models", alice, "")
    assert (caught.value.status, caught.value.retry_after) == (429, 30.0)
    clock.sleep(30.0)
    access.admit("/v1/models", alice, "")
    for foreign in ({"host": "evil.example"}, {**HOST, "origin": "http://evil.example"}, {}):
        with pytest.raises(Refusal) as caught:
            access.admit("/health", foreign, "")
        assert caught.value.status == 403
    assert access.admit("/health", {**HOST, "origin": "http://127.0.0.1:8321"}, "") == Caller()
    assert Access(is_local=False).admit("/v1/models", {"host": "example.org"}, "") == Caller()


def test_bodies_are_strict_and_ignore_what_changes_nothing() -> None:
    given: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    body = checked(ChatBody, {**given, "user": "me", "tools": [], "logit_bias": None, "stop": "x", "max_tokens": None})
    assert body.stop == ["x"]
    assert checked(AskBody, {}).stream is True
    for value, param in (
        ([], None),
        ({**given, "temperature": "1"}, "temperature"),
        ({**given, "n": True}, "n"),
        ({**given, "tools": [{}]}, "tools"),
        ({**given, "messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ):
        with pytest.raises(Refusal) as caught:
            checked(ChatBody, value)
        assert caught.value.param == param
        assert str(caught.value).endswith(".")


def test_what_nobody_foresaw_tells_nothing_of_the_inside() -> None:
    refusal = refusal_of(ZeroDivisionError("/secret/path"))
    assert refusal.status == 500
    assert "secret" not in json.dumps(refusal.document())
