"""Sessions in company: each is, token by token, the session it would be alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

import penstock
from penstock.engine import POLICIES, Engine, EngineSession, Finish, Place
from penstock.errors import InputError, Overloaded, SnapshotError, UsageError

from .company import MODEL, TEXT, alone, assert_equals, assert_whole, continuation, engine

# -- the law --------------------------------------------------------------------------------------------------------

ACTIONS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["append", "append", "ask", "on", "step"]), st.integers(0, 400)),
    min_size=4, max_size=14,
)  # fmt: skip


TIED = [  # blocks with the same tokens tie for a question: rounding, and so company, once chose among them
    (3, "step", 0), (1, "append", 305), (0, "append", 245), (0, "append", 9), (0, "ask", 53), (1, "append", 210),
    (1, "ask", 333), (3, "on", 176), (2, "step", 0), (3, "append", 168),
]  # fmt: skip


@pytest.mark.parametrize("path", ["eager", "auto"])
@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
@given(ACTIONS, st.sampled_from(sorted(POLICIES)), st.sampled_from(["streaming-llm", "window", "dense", "infllm"]))
@example(TIED, "past-future", "infllm")
def test_company_changes_nothing(path: str, actions: list[tuple[int, str, int]], policy: str, memory: str) -> None:
    budget = {"dense": None, "infllm": 48}.get(memory, 24)
    e = engine(memory, budget, policy=policy, tokens=40, chunk=16, quantum=2, path=path)
    sessions = [e.open() for _ in range(4)]
    expected = [alone(e) for _ in range(4)]
    answers: list[tuple[Any, str]] = []
    for session, single in zip(sessions, expected):
        session.append(TEXT[:20])
        single.feed(TEXT[:20])
    for which, action, at in actions:
        session, single = sessions[which], expected[which]
        if action == "append":
            session.append(TEXT[at : at + 90])
            single.feed(TEXT[at : at + 90])
        elif action == "ask":
            answers.append(
                (session.ask(TEXT[at : at + 20], max_new=5), "".join(single.reply(TEXT[at : at + 20], max_new=5)))
            )
        elif action == "on":
            options: dict[str, Any] = {"max_new": 6, "temperature": 1.5, "seed": at, "stop": ["e"]}
            answers.append((session.ask(**options), "".join(single.reply(**options))))
        else:
            e.step()
        e.check()
    assert e.drain()
    for session, single in zip(sessions, expected):
        assert_equals(session, single)
    for answer, text in answers:
        assert answer.text() == text
        assert answer.finish in (Finish.STOP, Finish.LENGTH)
    account = e.check()
    assert account["pending"] == sum(s.inbox.held for s in sessions)


def test_the_cut_of_the_input_changes_nothing() -> None:
    e = engine()
    whole, pieces = e.open(), e.open()
    whole.append(TEXT[:300])
    data = TEXT[:300].encode()
    for i in range(0, len(data), 7):
        pieces.append(data[i : i + 7])
        e.step()
    e.drain()
    assert whole.core.log.digest == pieces.core.log.digest
    assert continuation(whole) == continuation(pieces)


def test_token_ids_end_the_text_before_them() -> None:
    e = engine()
    session, single = e.open(), alone(e)
    session.append("some wor")
    appended = session.append([5, 6, 7])
    single.feed("some wor")
    single.flush()
    single.ingest([5, 6, 7])
    e.drain()
    assert_equals(session, single)
    assert appended.bytes == 12
    e.check()


def test_a_stream_of_token_ids_begins_with_the_first_of_them() -> None:
    e = engine()
    ids, text, single = e.open(), e.open(), alone(e)
    ids.append([5, 6, 7])
    ids.append("and text")
    text.append("some text")
    single.ingest([5, 6, 7])
    e.drain()
    assert list(ids.core.log.tail)[:3] == [5, 6, 7]
    prefix = list(ids.core._text().prefix_ids)
    assert [t for t in ids.core.log.tail if t in prefix] == [], "text behind ids goes on, it does not begin"
    assert list(text.core.log.tail)[: len(prefix)] == prefix


# -- places ---------------------------------------------------------------------------------------------------------


def crowd(e: Engine, count: int = 5) -> list[EngineSession]:
    sessions = [e.open(f"s{i}") for i in range(count)]
    for i, session in enumerate(sessions):
        session.append(TEXT[i * 40 : i * 40 + 200])
    e.drain()
    return sessions


def test_sessions_beyond_the_rows_go_to_ram_and_disk_and_come_back(tmp_path: Path) -> None:
    e = engine(ram=2 * 24 * 2000, folder=tmp_path)
    e.attic.ram = e.row_nbytes
    sessions = crowd(e)
    places = {s.place for s in sessions}
    assert places == {Place.DEVICE, Place.RAM, Place.DISK}
    account = e.check()
    assert account["disk"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    for session in sessions:
        assert_whole(session)
        session.append("more. ")
    e.drain()
    for session in sessions:
        assert_whole(session)
    e.close()
    assert not list(tmp_path.iterdir())


def test_a_silent_session_costs_nothing() -> None:
    e = engine()
    crowd(e)
    before = e.stats()
    assert not e.step()
    assert not e.busy
    e.clock.sleep(1e6)
    assert not e.step()
    assert e.stats() == before


def test_more_sessions_than_fit_are_refused() -> None:
    e = engine(ram=0)
    e.open()
    e.open()
    with pytest.raises(Overloaded, match="give more RAM, or a folder"):
        e.open()


def test_ids() -> None:
    e = engine()
    session = e.open("a")
    assert e["a"] is session
    assert "a" in e
    assert e.ids == ["a"]
    with pytest.raises(UsageError, match="there is a session a already"):
        e.open("a")
    session.close()
    session.close()
    assert "a" not in e
    with pytest.raises(UsageError, match="there is no session a"):
        e["a"]
    with pytest.raises(UsageError, match="closed"):
        session.append("x")


# -- fork, truncate, save -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["streaming-llm", "infllm"])
def test_forks_share_and_part(memory: str) -> None:
    e = engine(memory, 48)
    first, *_ = crowd(e, 4)
    first.append("held back")
    fork = first.fork("fork")
    again = fork.fork()
    e.check()
    first.append(" by one")
    fork.append(" by the other")
    e.drain()
    for session in (first, fork, again):
        assert_whole(session)
    assert fork.core.log.digest != first.core.log.digest
    assert first.tokens > again.tokens


def test_forks_of_a_session_in_ram_share_its_bytes() -> None:
    e = engine()
    away = next(s for s in crowd(e) if s.place is Place.RAM)
    before = e.check()["ram"]
    forks = [away.fork() for _ in range(3)]
    assert e.check()["ram"] == before
    away.close()
    assert e.check()["ram"] == before
    for fork in forks:
        assert_whole(fork)


def test_truncate_cuts_what_waits_and_what_is_read() -> None:
    e = engine(budget=400)
    session, single = e.open(), alone(e)
    session.append(TEXT[:200])
    e.drain()
    read = session.core.tokens
    session.append(TEXT[200:400])
    waiting = session.inbox.tokens
    assert waiting > 3
    session.truncate(read + 3)
    assert session.tokens == read + 3
    session.truncate(read - 5)
    assert session.tokens == session.core.tokens == read - 5
    e.check()
    single.ingest(list(session.core.log.tail))
    assert_equals(session, single)
    with pytest.raises(UsageError, match="cannot be truncated"):
        session.truncate(read)
    session.truncate(0)
    session.append(TEXT[:50])
    e.drain()
    assert_whole(session)


def test_saved_sessions_continue_in_an_engine_and_alone(tmp_path: Path) -> None:
    e = engine()
    sessions = crowd(e)
    for session in sessions:
        session.append("Waiting when it was saved, and cut in mid-w")
        session.save(tmp_path / session.id)
    e.check()
    new = engine(rows=1)
    for session in sessions:
        resumed = new.resume(tmp_path / session.id, session.id)
        assert resumed.tokens == session.tokens
        assert resumed.inbox.pending == session.inbox.pending
        new.check()
    for session in sessions:
        single = penstock.resume(tmp_path / session.id, MODEL, run_path="eager")
        single.feed("ord.")
        single.flush()
        new[session.id].append("ord.")
        answer = new[session.id].ask(max_new=4).text()
        assert answer == "".join(single.reply(max_new=4))
        assert_equals(new[session.id], single)
    new.check()


def test_an_empty_session_is_saved_too(tmp_path: Path) -> None:
    e = engine()
    e.open().save(tmp_path / "empty")
    resumed = e.resume(tmp_path / "empty")
    resumed.append(TEXT[:60])
    e.drain()
    assert_whole(resumed)


def test_a_snapshot_of_another_memory_is_refused(tmp_path: Path) -> None:
    e = engine()
    crowd(e, 1)[0].save(tmp_path / "one")
    with pytest.raises(SnapshotError, match="budget 24, this engine has"):
        engine(budget=30).resume(tmp_path / "one")


def test_a_session_in_mid_answer_is_neither_forked_nor_saved(tmp_path: Path) -> None:
    e = engine()
    session = crowd(e, 1)[0]
    answer = session.ask(max_new=5)
    for act in (session.fork, lambda: session.save(tmp_path / "x"), lambda: session.truncate(3)):
        with pytest.raises(UsageError, match="answering"):
            act()
    answer.text()
    session.fork()


# -- mistakes -------------------------------------------------------------------------------------------------------


def test_a_question_to_nothing_is_an_error_of_that_answer_only() -> None:
    e = engine("window")
    e.model.tokenizer.add_bos_token = True
    empty = e.open()
    session = crowd(e, 1)[0]
    answer = session.ask(max_new=3)
    if not empty.core._text().prefix_ids:
        with pytest.raises(InputError, match="nothing to reply to"):
            empty.ask(max_new=3).text()
    assert answer.text() is not None
    e.check()


def test_foreign_token_ids_are_refused_at_once() -> None:
    session = engine().open()
    with pytest.raises(InputError, match="vocabulary"):
        session.append([10**6])
    assert session.tokens == 0


def test_a_failing_model_reaches_only_whom_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step fails whenever a certain token is in it: its session is lost, the others never notice."""
    e = engine(rows=4)
    sessions = crowd(e, 3)
    poison = 77
    step = e.runner.step

    def failing(spans: Any, tokens: Any, *rest: Any) -> Any:
        if poison in list(tokens):
            raise RuntimeError("bad token")
        return step(spans, tokens, *rest)

    monkeypatch.setattr(e.runner, "step", failing)
    for session in sessions:
        session.append([5, 6])
    sessions[1].append([poison])
    answers = [session.ask(max_new=4) for session in sessions]
    e.drain()
    with pytest.raises(RuntimeError, match="bad token"):
        answers[1].text()
    assert answers[1].finish is Finish.ERROR
    with pytest.raises(RuntimeError, match="bad token"):
        sessions[1].append("x")
    for i in (0, 2):
        assert answers[i].text()
        assert_whole(sessions[i])
    sessions[1].close()
    e.check()


@pytest.mark.parametrize(("name", "value"), [("rows", 0), ("chunk", 0), ("tokens", 0), ("policy", "fair")])
def test_impossible_engines_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError):
        engine(**{name: value})
