"""tim: after a prune, a session is one that never read the span."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch

import penstock
from penstock import Session
from penstock.errors import BudgetError, CompositionError, NotRewindable, UsageError
from penstock.methods.tim import Tim
from penstock.spans import Spans
from penstock.testing import tiny_model, tiny_tokens

MODEL = penstock.load(tiny_model("llama"))


def opened(memory: str = "tim", budget: int = 64, **options: object) -> Session:
    return penstock.open(MODEL, memory, budget, **options)  # type: ignore[arg-type]


def words(count: int, seed: int) -> list[int]:
    return tiny_tokens(count, seed).tolist()


def fresh(tokens: list[int], of: Session) -> Session:
    new = Session(of.model, of.method, of.budget, chunk=of.chunk)
    new.ingest(tokens)
    return new


def assert_same(a: Session, b: Session) -> None:
    """Cache, logits, log and what comes next."""
    assert a.tokens == b.tokens == a.log.count
    assert a.log.digest == b.log.digest
    ours, theirs = a._memory.save_row(0), b._memory.save_row(0)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor.double(), theirs[name].double(), rtol=0, atol=1e-5), name
    assert a.logits is not None
    assert b.logits is not None
    assert float((a.logits - b.logits).abs().max()) <= 1e-5 * max(1.0, float(b.logits.abs().max()))
    more = words(5, 99)
    first, second = a.fork(), b.fork()
    for token in more:
        assert float((first.decode(token) - second.decode(token)).abs().max()) <= 1e-4


def live(session: Session) -> set[int]:
    return {i for view in session.memory.view() for i in view.seen}


@pytest.mark.parametrize(("start", "stop"), [(10, 30), (0, 30), (10, 50), (5, 6), (0, 49), (20, 20)])
@pytest.mark.parametrize("memory", ["tim", "dense", "streaming-llm"])
def test_a_pruned_is_never_read(memory: str, start: int, stop: int) -> None:
    session, tokens = opened(memory), words(50, 1)
    session.ingest(tokens)
    again = session.prune(start, stop)
    assert_same(session, fresh(tokens[:start] + tokens[stop:], session))
    assert again == (0 if start == stop else 50 - stop or 1)
    assert live(session) == set(range(50 - stop + start))


def test_a_everything_can_be_pruned() -> None:
    session = opened()
    session.ingest(words(20, 1))
    session.prune(0, 20)
    assert (session.tokens, session.logits) == (0, None)
    session.ingest(words(9, 2))
    assert_same(session, fresh(words(9, 2), session))


def work(session: Session, tasks: int) -> list[list[int]]:
    """Prompt, then tasks: subtasks in a span, a conclusion behind it.  Returns the live pieces, by the card's rule."""
    limit = session.spans.stack
    assert limit is not None
    pieces = [words(6, 1000)]
    session.ingest(pieces[0])
    done: list[list[int]] = []
    for i in range(tasks):
        session.begin_span()
        subtasks = words(7 + i % 3, i)
        session.ingest(subtasks[:4])
        for token in subtasks[4:]:
            session.decode(token)
        pruned = session.end_span()
        pieces.append(subtasks)
        done.append(subtasks)
        if len(done) > limit:
            assert [len(span) for span in pruned] == [len(done[0])]
            pieces.remove(done.pop(0))
        else:
            assert pruned == []
        conclusion = words(1, 500 + i)
        session.ingest(conclusion)
        pieces.append(conclusion)
        # (d) live rows are the sum of live spans, (b) and no position is beyond them
        assert session.tokens == sum(map(len, pieces)) == session._memory.length(0)
        if session.tokens <= 64:
            assert live(session) == set(range(session.tokens))
    return pieces


@pytest.mark.parametrize("stack", [0, 1, 2])
def test_a_b_and_d_a_long_job_in_a_small_memory(stack: int) -> None:
    """150 tokens pass through a memory of 64, nothing slides out, and the answer is that of the shortened text."""
    session = opened(f"tim:stack={stack}")
    pieces = work(session, 16)
    assert session.tokens <= 64
    assert_same(session, fresh(list(chain(*pieces)), session))


def test_c_an_endless_stack_is_ordinary_generation_bit_for_bit() -> None:
    session, plain = opened("tim:stack=1000"), opened("streaming-llm")
    work(session, 8)
    plain.ingest(words(6, 1000))
    for i in range(8):
        subtasks = words(7 + i % 3, i)
        plain.ingest(subtasks[:4])
        for token in subtasks[4:]:
            plain.decode(token)
        plain.ingest(words(1, 500 + i))
    assert session.logits is not None
    assert plain.logits is not None
    assert torch.equal(session.logits, plain.logits)
    for name, tensor in session._memory.save_row(0).items():
        assert torch.equal(tensor, plain._memory.save_row(0)[name])


def test_spans_survive_saving_and_forking(tmp_path: Path) -> None:
    session = opened("tim:stack=1")
    session.ingest(words(5, 1))
    session.begin_span()
    session.ingest(words(8, 2))
    session.end_span()
    session.begin_span()
    session.ingest(words(4, 3))
    session.save(tmp_path / "job.penstock")
    again, fork = penstock.resume(tmp_path / "job.penstock", MODEL), session.fork()
    expected = words(5, 1) + words(4, 3) + words(3, 4)
    for one in (fork, again, session):
        assert (one.spans.begun, one.spans.done) == ([13], [(5, 13)])
        one.ingest(words(3, 4))
        assert one.end_span() == [range(5, 13)]
        assert one.spans.done == [(5, 12)]
        assert_same(one, fresh(expected, one))


def test_going_back_takes_spans_along() -> None:
    session = opened("tim:stack=1")
    session.ingest(words(5, 1))
    session.begin_span()
    session.ingest(words(5, 2))
    session.end_span()
    mark = session.mark()
    session.begin_span()
    session.ingest(words(5, 3))
    session.rollback(mark)
    assert (session.spans.begun, session.spans.done) == ([], [(5, 10)])
    session.commit(mark)
    session.truncate(8)
    assert (session.spans.begun, session.spans.done) == ([5], [])
    session.ingest(words(2, 4))
    session.end_span()
    assert session.spans.done == [(5, 10)]
    early, late = session.mark(), session.ingest(words(1, 5)) and session.mark()
    session.prune(2, 4)
    for closed in (early, late):
        with pytest.raises(NotRewindable, match="closed"):
            session.rollback(closed)
    session.reset()
    assert (session.spans.begun, session.spans.done, session.spans.stack) == ([], [], 1)


def test_a_mark_before_the_span_stays_open() -> None:
    session = opened()
    session.ingest(words(12, 1))
    mark = session.mark()
    session.ingest(words(20, 2))
    session.prune(15, 25)
    assert_same(session, fresh(words(12, 1) + words(20, 2)[:3] + words(20, 2)[13:], session))
    session.rollback(mark)
    session.commit(mark)
    assert_same(session, fresh(words(12, 1), session))


def test_what_has_left_the_window_stays_as_it_is() -> None:
    session = opened("tim:stack=0", 16)
    session.ingest(words(6, 1))
    session.begin_span()
    session.ingest(words(30, 2))
    digest = session.log.digest
    with pytest.raises(NotRewindable, match="evicted"):
        session.prune(6, 20)
    assert session.end_span() == []
    assert (session.log.digest, session.tokens, session.spans.done) == (digest, 36, [])


def test_pruned_tokens_are_told() -> None:
    session, told = opened(), []
    session.on_evict(told.append)
    session.ingest(words(20, 1))
    session.prune(3, 6)
    assert [(event.seen, list(event.tokens)) for event in told] == [(range(3, 6), words(20, 1)[3:6])]


def test_spans_nest() -> None:
    spans = Spans(1)
    spans.begin(3)
    spans.begin(5)
    spans.end(8)
    assert spans.done == [(5, 8)]
    spans.end(10)
    assert spans.done == [(3, 10)]
    spans.begin(12)
    spans.end(15)
    assert spans.excess() == (3, 10)
    spans.begin(16)
    spans.cut(3, 10)
    assert (spans.begun, spans.done) == ([9], [(5, 8)])


def test_refused() -> None:
    session = opened()
    session.ingest(words(10, 1))
    for start, stop in ((-1, 3), (4, 11), (5, 4)):
        with pytest.raises(UsageError, match="give indices within it"):
            session.prune(start, stop)
    with pytest.raises(UsageError, match="no span is open"):
        session.end_span()
    routed = opened("streaming-vlm")
    routed.ingest(words(10, 1))
    with pytest.raises(CompositionError, match="memory=tim"):
        routed.prune(2, 4)
    for budget in (None, 4):
        with pytest.raises(BudgetError, match="budget"):
            Tim().cascade(budget)
