"""Answers: readers of both kinds, cancellation, deadlines on a clock that the test drives, threads."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from penstock.core import RealClock, SimulatedClock
from penstock.engine import Engine, Finish, Lag
from penstock.errors import Overloaded

from .company import TEXT, alone, assert_equals, assert_whole, engine


def expected(e: Engine, text: str, **options: Any) -> str:
    single = alone(e)
    single.feed(text)
    return "".join(single.reply(**options))


@pytest.mark.parametrize("after", [0, 1, 3, 7])
@pytest.mark.parametrize("stop", [(), ("zzzz", " the quick")])
def test_a_cancelled_answer_leaves_what_was_put_out(after: int, stop: tuple[str, ...]) -> None:
    e = engine()
    session, other = e.open(), e.open()
    session.append(TEXT[:200])
    other.append(TEXT[:100])
    e.drain()
    answer = session.ask(max_new=40, stop=stop, temperature=3.0, seed=4)
    beside = other.ask(max_new=20)
    for _ in range(after):
        next(answer)
    answer.cancel()
    answer.text()
    assert answer.finish is Finish.CANCELLED
    assert_whole(session)
    session.append("And on it goes. ")
    assert beside.text() == expected(e, TEXT[:100], max_new=20)
    e.drain()
    assert_whole(session)


def test_cancelled_before_it_began() -> None:
    e = engine()
    session, single = e.open(), alone(e)
    session.append(TEXT[:100])
    answer = session.ask("Why?", max_new=10)
    answer.cancel()
    assert answer.text() == ""
    assert answer.finish is Finish.CANCELLED
    session.append("Next. ")
    e.drain()
    single.feed(TEXT[:100])
    single.flush()
    single.feed("Why?")
    single.flush()
    single.feed("Next. ")
    assert_equals(session, single)


def test_a_closed_session_ends_its_answers() -> None:
    e = engine()
    session = e.open()
    session.append(TEXT[:100])
    answers = [session.ask(max_new=10), session.ask(max_new=10)]
    next(answers[0])
    session.close()
    assert [list(a) is not None and a.finish for a in answers] == [Finish.CANCELLED, Finish.CANCELLED]
    assert e.check() == {**e.check(), "pending": 0, "ram": 0}


def test_answers_on_a_fork_leave_no_trace() -> None:
    e = engine()
    session = e.open()
    session.append(TEXT[:100])
    text = session.ask("Why?", max_new=6, remember=False).text()
    single = alone(e)
    single.feed(TEXT[:100])
    assert text == "".join(single.reply("Why?", max_new=6, remember=False))
    assert e.ids == [session.id]
    e.drain()
    assert_equals(session, single)


# -- time -----------------------------------------------------------------------------------------------------------


def test_deadlines_end_answers_where_they_are() -> None:
    clock = SimulatedClock()
    e = engine(clock=clock, policy="earliest-deadline")
    session, other = e.open(), e.open()
    for s in (session, other):
        s.append(TEXT[:100])
    e.drain()
    late, fine = session.ask(max_new=50, deadline=1.0), other.ask(max_new=5, deadline=1.0)
    for _ in range(10):
        clock.sleep(0.05)
        e.step()
    assert fine.finish is Finish.LENGTH
    assert late.finish is None
    clock.sleep(0.6)
    assert late.text()
    assert late.finish is Finish.DEADLINE
    assert late.tokens < 50
    assert_whole(session)
    stats = e.stats()
    assert (stats.pace.deadlines_met, stats.pace.deadlines_missed) == (1, 1)
    assert stats.pace.first_ms["p50"] == pytest.approx(50)
    assert stats.pace.between_ms["p50"] == pytest.approx(50)
    assert stats.pace.stalls == 0
    mine, others = session.status().pace, other.status().pace
    assert (mine.deadlines_met, mine.deadlines_missed) == (0, 1)
    assert (others.deadlines_met, others.deadlines_missed) == (1, 0)
    assert others.between_ms["p99"] == pytest.approx(50)
    slow = other.ask(max_new=3)
    while slow.finish is None:
        e.step()
        clock.sleep(1.5)
    assert (session.status().pace.stalls, other.status().pace.stalls, e.stats().pace.stalls) == (0, 2, 2)


def test_a_deadline_that_passes_in_the_queue() -> None:
    e = engine()
    session = e.open()
    session.append(TEXT[:300])
    answer = session.ask(max_new=5, deadline=0.5)
    e.clock.sleep(1.0)
    assert answer.text() == ""
    assert answer.finish is Finish.DEADLINE
    e.drain()
    assert_whole(session)


def test_the_urgent_is_served_before_the_early() -> None:
    e = engine(rows=1, policy="earliest-deadline", tokens=8, chunk=8)
    first, urgent = e.open("first"), e.open("urgent")
    first.append(TEXT[:300])
    urgent.append(TEXT[:300])
    urgent.ask(max_new=1, deadline=5.0)
    assert set(e.step().ingested) == {"urgent"}


def test_waiting_sessions_are_counted_as_stuck_and_served_in_turn() -> None:
    e = engine(rows=1, policy="least-recently-served", chunk=8, patience=3.0)
    sessions = [e.open(f"{i}") for i in range(3)]
    for s in sessions:
        s.append(TEXT[:200])
    served = []
    for _ in range(3):
        served += list(e.step().ingested)
        e.clock.sleep(1.0)
    assert sorted(served) == ["0", "1", "2"]
    assert e.stats().stuck == 0
    e.clock.sleep(5.0)
    assert e.stats().stuck == 3
    e.drain()
    assert (e.stats().stuck, e.stats().still) == (0, 0)


def test_a_step_that_does_not_end_is_told_by_the_clock() -> None:
    e = engine(patience=3.0)
    silent, session = e.open(), e.open()
    silent.append(TEXT[:100])
    e.drain()
    e.clock.sleep(1e6)  # silence is not standing still
    session.append(TEXT[:100])
    step, seen = e.runner.step, []

    def hangs(*args: Any, **options: Any) -> Any:
        for _ in range(3):
            seen.append((e.stats().stuck, e.stats().still))
            e.clock.sleep(2.0)
        return step(*args, **options)

    e.runner.step = hangs  # type: ignore[method-assign]
    e.step()
    assert seen == [(0, 0.0), (0, 2.0), (1, 4.0)]
    assert e.stats().still == 0


def test_lag_policies_on_a_session() -> None:
    e = engine()
    refusing = e.open(lag=Lag(1000, policy="refuse"))
    dropping = e.open(lag=Lag(1000, policy="drop-oldest"))
    waiting = e.open(lag=Lag(1000))
    for session in (refusing, dropping, waiting):
        session.append("one two three. ")
    e.clock.sleep(2.0)
    with pytest.raises(Overloaded, match="behind its input by 2000 ms"):
        refusing.append("four five. ")
    appended = dropping.append("four five. ")
    assert appended.bytes_dropped > 0
    assert appended.lag_ms <= 1000
    assert waiting.append("four five. ").wait
    assert waiting.status().lag_ms == 2000
    e.drain()
    e.check()
    assert refusing.status().counters["refused"] == 1
    refusing.append("four five. ")
    assert dropping.status().counters["bytes_dropped"] == appended.bytes_dropped
    single = alone(e)
    single.feed("one two three. ")
    single.feed("four five. ")
    assert_equals(waiting, single)
    e.drain()
    assert_equals(refusing, single)


# -- threads and loops ----------------------------------------------------------------------------------------------


def test_many_threads_talk_to_a_running_engine() -> None:
    e = engine(rows=3, clock=RealClock(), quantum=2)
    answers: dict[int, str] = {}
    texts = [TEXT[i * 20 : i * 20 + 150] for i in range(6)]

    def talk(i: int) -> None:
        session = e.open()
        for at in range(0, 150, 30):
            session.append(texts[i][at : at + 30])
        fork = session.fork()
        answers[i] = session.ask("What?", max_new=8).text()
        fork.close()
        assert session.drained(60)

    with e:
        threads = [threading.Thread(target=talk, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert e.drain(60)
        e.check()
        single = alone(e)
    assert not e.is_running
    for i, text in enumerate(texts):
        single.reset()
        single.feed(text)
        assert answers[i] == "".join(single.reply("What?", max_new=8))


@pytest.mark.parametrize("runs", [True, False])
def test_answers_are_asynchronous_iterators(runs: bool) -> None:
    e = engine(clock=RealClock())
    sessions = [e.open() for _ in range(3)]
    for session in sessions:
        session.append(TEXT[:100])

    async def read(answer: Any) -> str:
        return "".join([piece async for piece in answer])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(read(s.ask(max_new=6)) for s in sessions))

    if runs:
        e.run()
    try:
        assert asyncio.run(all_of_them()) == [expected(e, TEXT[:100], max_new=6)] * 3
    finally:
        e.close()


def test_an_engine_that_fails_tells_its_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    e = engine(clock=RealClock())
    session = e.open()
    session.append(TEXT[:100])

    def broken(*_: Any) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(e.policy, "order", broken)
    with e, pytest.raises(RuntimeError, match="a mistake of ours"):
        session.ask(max_new=3).text()
