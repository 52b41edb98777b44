"""Input that is rewritten: what was read in the end is the last version, and nothing is said before."""

from __future__ import annotations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from penstock.engine import Lag
from penstock.engine.rewriting import common_prefix
from penstock.errors import UsageError

from .company import TEXT, alone, assert_equals, engine

CHANGES = st.lists(
    st.tuples(st.sampled_from(["append", "rewrite", "shorten", "step"]), st.integers(0, 200), st.integers(0, 120)),
    min_size=1, max_size=6,
)  # fmt: skip


@settings(max_examples=12, phases=[Phase.explicit, Phase.generate])
@given(CHANGES, st.booleans(), st.sampled_from([("dense", None), ("streaming-llm", 24)]))
def test_only_the_last_version_was_read(changes: list[tuple[str, int, int]], has_past: bool, memory: tuple) -> None:
    e = engine(*memory, chunk=16, tokens=16)
    session, single, other = e.open(), alone(e), e.open()
    other.append(TEXT[:30])
    if has_past:
        session.append(TEXT[:70])
        single.feed(TEXT[:70])
    draft, version = session.draft(), ""
    for action, at, length in changes:
        if action == "append":
            version += TEXT[at : at + length]
            draft.append(TEXT[at : at + length])
        elif action == "rewrite":
            version = version[:at] + TEXT[at : at + length] + "é"
            draft.rewrite(version.encode())
        elif action == "shorten":
            version = version[:at]
            draft.rewrite(version)
        else:
            e.step()
        e.check()
    draft.append("The end.")
    draft.end()
    single.feed(version + "The end.")
    e.drain()
    assert_equals(session, single)
    assert session.ask("So?", max_new=4).text() == "".join(single.reply("So?", max_new=4))
    assert_equals(session, single)
    e.check()
    assert e.ids == [session.id, other.id]


def test_a_rewrite_reads_only_what_differs() -> None:
    e = engine("dense", None)
    session = e.open()
    draft = session.draft()
    ids = list(range(40, 100))
    draft.append(ids)
    e.drain()
    before = e.tokens_ingested
    assert draft.rewrite([*ids[:50], 7, 8, 9]) == 10
    e.drain()
    assert e.tokens_ingested - before == 3
    assert (draft.kept, draft.invalidated) == (50, 10)
    assert draft.rewrite(ids[:20]) == 33
    assert session.core.logits is not None, "a shorter version has logits too"
    assert draft.rewrite([]) == 20
    draft.end()
    assert session.tokens == 0


def test_nothing_is_sampled_before_the_input_has_ended() -> None:
    e = engine()
    session = e.open()
    draft = session.draft()
    draft.append(TEXT[:60])
    e.drain()
    for act in (lambda: session.ask("?"), session.fork, lambda: session.truncate(2), session.draft):
        with pytest.raises(UsageError, match="is a draft"):
            act()
    draft.end()
    assert session.ask(max_new=3).text()
    with pytest.raises(UsageError, match="has ended"):
        draft.rewrite("x")


def test_a_session_that_drops_input_has_no_drafts() -> None:
    session = engine().open(lag=Lag(1e3, policy="drop-oldest"))
    with pytest.raises(UsageError, match="lag policy wait or refuse"):
        session.draft()


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix(a: list[int], b: list[int]) -> None:
    n = common_prefix(a, b)
    assert a[:n] == b[:n]
    assert a[n : n + 1] != b[n : n + 1] or n == len(a) == len(b)
