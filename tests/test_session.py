"""Sessions: whatever is done to one, its memory is that of a session that read the same tokens from the start."""

from __future__ import annotations

import contextlib
import os
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import penstock
from penstock import Chunk, Session
from penstock.errors import CompositionError, InputError, NotRewindable, UsageError
from penstock.models.load import TINY
from penstock.testing import tiny_model

TOKENIZER = AutoTokenizer.from_pretrained(TINY)
MODEL = penstock.load(tiny_model("llama", vocab_size=len(TOKENIZER)), tokenizer=TOKENIZER)
TEXT = (
    "In the beginning was the log, and the log was with the café — naïve, 日本語 and 🙂🙃 included.\n"
    "    def f(x):\n\t\treturn x ** 2  # 12345.678e-9\n"
) * 6


def session(memory: str = "streaming-llm", budget: int | None = 24, **options: object) -> Session:
    return penstock.open(MODEL, memory, budget, **options)  # type: ignore[arg-type]


def replayed(of: Session) -> Session:
    """A new session that reads the tokens of another one from the start."""
    new = Session(of.model, of.method, of.budget, chunk=of.chunk)
    assert len(of.log.tail) == of.tokens
    new.ingest(list(of.log.tail))
    return new


def continuation(of: Session, length: int = 6) -> list[int]:
    """The greedy continuation, on a fork."""
    fork = of.fork()
    out = []
    for _ in range(length):
        assert fork.logits is not None
        out.append(int(fork.logits.argmax()))
        fork.decode(out[-1])
    return out


def assert_same(a: Session, b: Session) -> None:
    assert a.tokens == b.tokens == a.log.count == b.log.count
    assert a.stats().digest == b.stats().digest
    if a.tokens:
        assert a.logits is not None
        assert b.logits is not None
        scale = max(1.0, float(b.logits.abs().max()))
        assert float((a.logits - b.logits).abs().max()) <= 1e-4 * scale
        assert continuation(a) == continuation(b)


# -- feeding ----------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.lists(st.integers(0, 400), max_size=8), st.sampled_from([1, 7, 64]))
def test_tokens_do_not_depend_on_how_bytes_arrive(cuts: list[int], chunk: int) -> None:
    data = TEXT[:150].encode()
    one, other = session(chunk=64), session(chunk=chunk)
    one.feed(TEXT[:150])
    one.end()
    borders = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    for start, stop in pairwise(borders):
        other.feed(data[start:stop])
    other.end()
    assert list(one.log.tail) == TOKENIZER(TEXT[:150])["input_ids"]
    assert_same(one, other)


def test_a_chunk_is_fed_as_its_payload() -> None:
    one, other = session(), session()
    one.feed("some text ")
    other.feed(Chunk("some text ", t0=1.0, t1=2.0))
    assert_same(one, other)


def test_feed_tells_how_many_tokens_entered() -> None:
    s = session()
    entered = s.feed(TEXT[:40]) + s.feed(TEXT[40:80])
    assert entered == s.tokens
    assert entered + s.flush() == s.tokens == len(TOKENIZER(TEXT[:80])["input_ids"])


def test_foreign_token_ids_are_refused_before_anything_happens() -> None:
    s = session()
    s.feed(TEXT[:40])
    before = s.stats().digest
    with pytest.raises(InputError, match="vocabulary"):
        s.ingest([5, len(TOKENIZER)])
    assert s.stats().digest == before


# -- any sequence of operations ---------------------------------------------------------------------------------

OPERATIONS = st.one_of(
    st.tuples(st.just("feed"), st.integers(0, 600), st.integers(1, 60)),
    st.tuples(st.just("reply"), st.integers(0, 6), st.booleans()),
    st.tuples(st.just("ask"), st.integers(1, 6), st.booleans()),
    st.tuples(st.just("fork"), st.booleans(), st.integers(1, 20)),
    st.tuples(st.just("truncate"), st.integers(0, 30), st.none()),
    st.tuples(st.just("mark"), st.integers(4, 60), st.none()),
    st.tuples(st.just("rollback"), st.integers(0, 3), st.none()),
    st.tuples(st.just("commit"), st.integers(0, 3), st.none()),
    st.tuples(st.just("resume"), st.none(), st.none()),
    st.tuples(st.just("flush"), st.none(), st.none()),
)


class Driver:
    """Runs operations on a session; knows the tokens that the stream should have, from an encoder of its own."""

    def __init__(self, memory: str, budget: int | None) -> None:
        self.session = session(memory, budget, chunk=5)
        self.expected: list[int] = []
        self.marks: list[tuple[penstock.Mark, list[int]]] = []

    def run(self, name: str, a: object, b: object) -> None:
        getattr(self, name)(a, b)
        assert list(self.session.log.tail) == self.expected

    def feed(self, start: int, length: int) -> None:
        data = TEXT.encode()[start : start + length]
        encoder = self.session.encoder
        assert encoder is not None
        self.expected += encoder.copy().feed(data)
        try:
            self.session.feed(data)
        except NotRewindable:  # more than the open mark can hold: what fits has entered
            self.expected = list(self.session.log.tail)

    def flush(self, _a: None, _b: None) -> None:
        encoder = self.session.encoder
        assert encoder is not None
        self.expected += encoder.copy().flush()
        try:
            self.session.flush()
        except NotRewindable:
            self.expected = list(self.session.log.tail)

    def reply(self, pieces: int, stop: bool, question: str | None = None) -> None:
        if self.session.logits is None and question is None:
            return
        encoder = self.session.encoder
        assert encoder is not None
        encoder = encoder.copy()
        self.expected += encoder.flush()
        if question is not None:
            self.expected += encoder.feed(question) + encoder.flush()
        answer = self.session.reply(question, max_new=5, stop=["e", "on"] if stop else [], temperature=3.0, seed=pieces)
        given, full = "", False
        try:
            for _, piece in zip(range(pieces), answer):
                given += piece
            answer.close()  # type: ignore[attr-defined]
        except NotRewindable:  # more than the open mark can hold
            full = True
            assert self.session.marks.open
        if pieces == 0:  # never begun: nothing was asked
            self.expected = self.expected[: self.session.tokens]
        new = list(self.session.log.tail)
        assert new[: len(self.expected)] == self.expected[: len(new)]
        said = new[len(self.expected) :]
        assert len(said) <= 5
        if not full:
            assert bool(said) == bool(given)
            assert TOKENIZER.decode(said).startswith(given.rstrip("\ufffd"))
        self.expected = new

    def ask(self, pieces: int, stop: bool) -> None:
        self.reply(pieces, stop, question=" And then?\n")

    def fork(self, swap: bool, length: int) -> None:
        fork = self.session.fork()
        before = fork.stats().digest
        if swap:
            for mark in self.session.marks.open[:1]:  # a full mark would refuse what is fed below
                self.session.commit(mark)
            self.session, fork, self.marks = fork, self.session, []
        fork.feed("something else, " * length)
        assert self.session.stats().digest == before

    def truncate(self, by: int, _b: None) -> None:
        length = max(0, self.session.tokens - by)
        before = self.session.stats().digest
        try:
            self.session.truncate(length)
        except NotRewindable:
            assert self.session.stats().digest == before
            return
        self.expected = self.expected[:length]

    def mark(self, room: int, _b: None) -> None:
        self.marks.append((self.session.mark(room), list(self.expected)))

    def rollback(self, which: int, _b: None) -> None:
        if which < len(self.marks):
            mark, expected = self.marks[which]
            if any(mark is known for known in self.session.marks.open):
                self.session.rollback(mark)
                self.expected = list(expected)
            else:  # truncated away
                with pytest.raises(NotRewindable, match="closed"):
                    self.session.rollback(mark)

    def commit(self, which: int, _b: None) -> None:
        if which < len(self.marks):
            with contextlib.suppress(NotRewindable):  # truncated away
                self.session.commit(self.marks[which][0])
            del self.marks[which:]

    def resume(self, _a: None, _b: None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "s.penstock")
            self.session.save(file)
            before = self.session
            self.session = penstock.resume(file, MODEL)
            assert os.listdir(folder) == ["s.penstock"]
        assert torch.equal(before.logits, self.session.logits) if before.logits is not None else True  # type: ignore[arg-type]
        assert before.encoder is not None
        assert self.session.encoder is not None
        assert before.encoder.state_dict() == self.session.encoder.state_dict()
        self.marks = []


@pytest.mark.parametrize(("memory", "budget"), [("streaming-llm", 24), ("window", 17), ("dense", None)])
def test_any_sequence_of_operations_equals_a_replayed_session(memory: str, budget: int | None) -> None:
    @settings(max_examples=settings().max_examples // 5)
    @given(st.lists(OPERATIONS, min_size=1, max_size=14))
    def check(operations: list[tuple[str, object, object]]) -> None:
        driver = Driver(memory, budget)
        driver.run("feed", 0, 40)
        for operation in operations:
            driver.run(*operation)
        assert_same(driver.session, replayed(driver.session))

    check()


# -- one thing at a time ----------------------------------------------------------------------------------------


def test_marks_of_equal_length_are_closed_one_by_one() -> None:
    s = session()
    s.feed(TEXT[:200])
    s.flush()
    outer, inner = s.mark(), s.mark()
    s.feed(TEXT[200:300])
    s.commit(inner)
    s.rollback(outer)
    assert_same(s, replayed(s))
    assert s.tokens == outer.length
    s.commit(outer)
    assert s.memory.nbytes == session().memory.nbytes  # nothing is held for a mark any more
    for mark in (outer, inner):
        with pytest.raises(NotRewindable, match="closed"):
            s.rollback(mark)


def test_a_full_memory_is_truncated_to_its_mark_and_not_below() -> None:
    s = session(chunk=5)  # in a chunk larger than the window, entries pass through without being stored
    s.feed(TEXT[:200])
    s.flush()
    mark = s.mark()
    s.feed(TEXT[200:300])
    s.flush()
    before = s.stats().digest
    with pytest.raises(NotRewindable, match="evicted since"):
        s.truncate(mark.length - 1)
    assert s.stats().digest == before
    s.truncate(mark.length + 3)
    assert_same(s, replayed(s))
    s.truncate(mark.length)  # was refused: the token before the mark had to be read again for its logits
    assert s.tokens == mark.length
    assert_same(s, replayed(s))


def test_truncating_drops_the_text_that_is_held_back() -> None:
    s = session("dense", None)
    s.feed("held back words")
    held = s.stats().pending_bytes
    assert held > 0
    s.truncate(s.tokens)
    assert s.stats().pending_bytes == 0
    s.truncate(0)
    assert s.tokens == 0
    s.feed("a new stream ")
    s.flush()
    assert list(s.log.tail) == TOKENIZER("a new stream ")["input_ids"]


@pytest.mark.parametrize("length", [-1, 10_000])
def test_streams_are_not_truncated_to_what_they_never_were(length: int) -> None:
    s = session()
    s.feed(TEXT[:50])
    with pytest.raises(NotRewindable, match="cannot truncate"):
        s.truncate(length)


def test_evictions_are_told_once_each_with_their_tokens() -> None:
    s = session("streaming-llm:sinks=2", 10, chunk=4)
    gone: list[int] = []
    tokens: list[int] = []
    s.on_evict(lambda event: (gone.extend(event.seen), tokens.extend(event.tokens)))  # type: ignore[func-returns-value]
    s.feed(TEXT[:120])
    s.flush()
    everything = list(s.log.tail)
    assert gone == list(range(2, s.tokens - 8))
    assert tokens == everything[2 : s.tokens - 8]
    remembered = {seen for segment in s.memory.view() for seen in segment.seen}
    assert remembered == set(range(s.tokens)) - set(gone)
    with pytest.raises(CompositionError, match="evicts nothing"):
        session("dense", None).on_evict(print)


def test_losses_are_measured_for_every_token_but_the_first() -> None:
    one, other = session(measure=True, chunk=64), session(measure=True, chunk=3)
    for s in (one, other):
        s.feed(TEXT[:150])
        s.flush()
        assert s.meter.predictions == s.tokens - 1
    assert one.stats().nll_mean == pytest.approx(other.stats().nll_mean, rel=1e-5)
    assert session().stats().nll_mean is None


def test_forks_keep_how_text_is_read() -> None:
    s = session(special=True)
    s.feed("one<|eos|>two")
    fork = s.fork()
    fork.feed("<|eos|>")
    fork.flush()
    assert list(fork.log.tail).count(TOKENIZER.eos_token_id) == 2


def test_a_chunk_needs_a_token() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        session(chunk=0)


def test_memory_stays_within_its_bytes() -> None:
    s = session()
    for _ in range(5):
        s.feed(TEXT)
        stats = s.stats()
        assert stats.budget_bytes is not None
        assert stats.memory_bytes <= stats.budget_bytes
