"""Guesses change nothing but the number of steps: every answer has the tokens it would have without them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock
from penstock.engine import Drafter, Drafting, Engine, NGram, SmallModel
from penstock.engine.drafting import continuation, guess_bytes, most_guesses
from penstock.errors import UnknownName, UsageError
from penstock.log import TokenLog
from penstock.testing import tiny_model

from .company import MODEL, TEXT, TOKENIZER, alone, assert_equals, assert_whole, engine


class Oracle:
    """Guesses right, wrong, or right for a while: what the answer was without guesses."""

    name = "oracle"

    def __init__(self, tokens: dict[str, list[int]], lies: int) -> None:
        self.tokens, self.lies = tokens, lies

    def guess(self, id: str, log: TokenLog, token: int, most: int) -> list[int]:
        stream = self.tokens[id]
        out = stream[log.count + 1 : log.count + 1 + most] or [7]
        return [(t + 1) % 300 if self.lies and (log.count + i) % self.lies == 0 else t for i, t in enumerate(out)]

    def forget(self, id: str) -> None:
        pass


def told(e: Engine, **options: Any) -> tuple[list[str], list[list[int]]]:
    """Answers of two sessions, one after a longer text, and their streams."""
    sessions = [e.open(f"s{i}") for i in range(2)]
    texts, streams = [], []
    for i, session in enumerate(sessions):
        session.append(TEXT[: 60 + 170 * i])
    for session in sessions:
        session.append("A line.\n")
        for _ in range(2):
            texts.append(session.ask("What was it?", max_new=12 if e.by_phase else 20, **options).text())
        if not e.by_phase:  # else a question reads the memory in its own way
            assert_whole(session)
        streams.append(list(session.core.log.tail))
    e.drain()
    e.check()
    return texts, streams


DRAWN = {"temperature": 1.2, "seed": 3, "stop": ["e ", "qu"]}


@pytest.mark.parametrize(
    ("memory", "options"), [("streaming-llm", {}), ("streaming-llm", DRAWN), ("dense", {}), ("infllm", DRAWN)]
)
def test_answers_are_the_same_whatever_is_guessed(memory: str, options: dict[str, Any]) -> None:
    budget = {"dense": None, "infllm": 48}.get(memory, 24)
    texts, streams = told(engine(memory, budget), **options)
    known = {f"s{i}": stream for i, stream in enumerate(streams)}
    drafters: list[Drafter] = [NGram(shortest=1), Oracle(known, 0), Oracle(known, 3)]
    drafters += [] if options or memory == "dense" else [Oracle(known, 1)]
    for drafter in drafters:
        e = engine(memory, budget, draft=Drafting(drafter, most=5, bytes="1GiB"))
        assert told(e, **options) == (texts, streams)
        assert e.guesses is not None
        if isinstance(drafter, Oracle):
            assert e.guesses.made
            assert (e.guesses.right == 0) == (drafter.lies == 1)
            assert drafter.lies or e.guesses.made - e.guesses.right <= 4, "only those behind the end are wrong"


def test_a_small_model_guesses_for_a_large_one() -> None:
    texts, streams = told(engine())
    small = penstock.load(tiny_model("gpt_neox", vocab_size=len(TOKENIZER)), tokenizer=TOKENIZER)
    for model, is_same in ((small, False), (MODEL, True)):
        drafter = SmallModel(model, budget=24)
        e = engine(draft=Drafting(drafter, most=3))
        assert told(e) == (texts, streams)
        assert e.guesses is not None
        assert e.guesses.made
        assert drafter.nbytes > 0
        if is_same:
            assert e.guesses.right == pytest.approx(e.guesses.made, rel=0.2), "it is the same model"
        e.close()
        assert drafter.nbytes == 0


def test_company_and_cancelling_with_guesses() -> None:
    e = engine(rows=2, draft=Drafting(NGram(shortest=1), answers=3))
    sessions, singles = [e.open() for _ in range(3)], [alone(e) for _ in range(3)]
    for i, (session, single) in enumerate(zip(sessions, singles)):
        session.append(TEXT[i * 30 : 200])
        single.feed(TEXT[i * 30 : 200])
    answers = [session.ask(max_new=16) for session in sessions]
    expected = ["".join(single.reply(max_new=16)) for single in singles]
    e.drain()
    assert [a.text() for a in answers] == expected
    for session, single in zip(sessions, singles):
        assert_equals(session, single)
    answer = sessions[0].ask(max_new=30)
    next(answer)
    for _ in range(3):
        e.step()
    answer.cancel()
    e.drain()
    assert_whole(sessions[0])


def test_marks_for_guesses_are_planned_and_stay_in_the_budget() -> None:
    e = engine(draft=Drafting(Oracle({"a": [5] * 900}, 1), most=4))
    session = e.open("a")
    session.append(TEXT)
    e.drain()
    before = e.memory.nbytes
    seen = []
    step = e.runner.step

    def watched(*args: Any) -> Any:
        budget = e.memory.budget_bytes
        assert budget is not None
        assert e.memory.nbytes <= budget
        seen.append(e.memory.nbytes - before)
        return step(*args)

    e.runner.step = watched  # type: ignore[method-assign]
    session.ask(max_new=10).text()
    assert 0 < max(seen) <= guess_bytes(e.memory, 4)
    assert e.memory.nbytes == before
    need = [2 * guess_bytes(e.memory, n) for n in range(6)]
    assert [most_guesses(e.memory, 5, 2, need[n]) for n in (1, 3, 5)] == [1, 3, 5]
    assert most_guesses(e.memory, 5, 2, need[1] - 1) == 0
    assert most_guesses(engine("dense", None).memory, 5, 2, 0) == 5, "a memory that grows gives nothing up"


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_the_newest_earlier_occurrence_of_the_longest_suffix(tokens: list[int], most: int) -> None:
    expected: list[int] = []
    for n in (4, 3, 2):
        ends = [i for i in range(n, len(tokens)) if tokens[i - n : i] == tokens[-n:]]
        if ends and len(tokens) > n:
            expected = tokens[ends[-1] :][:most]
            break
    assert continuation(tokens, most) == expected


def test_impossible_drafts() -> None:
    with pytest.raises(UnknownName, match="ngram"):
        Drafting("n-gram")
    with pytest.raises(UsageError, match="at least 1"):
        Drafting(most=0)
    other = penstock.load(tiny_model("llama", vocab_size=77))
    with pytest.raises(UsageError, match="same tokenizer"):
        engine(draft=Drafting(SmallModel(other)))
