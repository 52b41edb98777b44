"""Recompute or swap: the cheaper way by the curves, and the same session either way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine import Place
from penstock.engine.demotion import Costs, Curve, fit, measure
from penstock.errors import UnknownName

from .company import TEXT, assert_whole, engine


@given(st.floats(0, 1), st.floats(0, 1e-2), st.floats(0, 1e-5))
def test_a_quadratic_is_found_again(a: float, b: float, c: float) -> None:
    points = [(8 << i, a + b * (8 << i) + c * (8 << i) ** 2) for i in range(7)]
    curve = fit(points)
    assert all(curve(n) == pytest.approx(s, abs=1e-6 + 1e-6 * s) for n, s in points)


def test_short_sessions_are_read_again_and_long_ones_swapped() -> None:
    costs = Costs(recompute=Curve((0.0, 1.0, 0.0)), swap=Curve((60.0, 0.0, 0.0)))
    assert costs.recomputes(59)
    assert not costs.recomputes(61)
    e = engine(rows=1, demotion=costs)
    short, long, other = e.open(), e.open(), e.open()
    short.append(TEXT[:60])
    long.append(TEXT)
    e.drain()
    other.append(TEXT[:40])
    e.drain()
    assert short.core.tokens < 60 < long.core.tokens
    assert (short.is_forgotten, long.is_forgotten) == (True, False)
    assert short.place is long.place is Place.RAM
    assert short.status().memory_bytes == 0 < long.status().memory_bytes
    e.check()
    fork = short.fork()
    for session in (short, long, fork):
        session.append("More. ")
    e.drain()
    assert e.rows.recomputed >= 2
    for session in (short, long, fork, other):
        assert_whole(session)
    short.truncate(5)
    short.close()
    e.check()


def test_what_the_log_no_longer_has_is_swapped() -> None:
    e = engine(rows=1, demotion="recompute", chunk=64)
    session, other = e.open(), e.open()
    session.core.log.tail = type(session.core.log.tail)(32)
    session.append(TEXT)
    e.drain()
    other.append("x y z")
    e.drain()
    assert not session.is_forgotten
    e.check()


def test_curves_are_measured_on_the_memory_itself() -> None:
    e = engine()
    costs = measure(e.runner, 16, most=64, repeats=3, drop=1)
    assert costs.recompute(64) > 0
    assert costs.swap(64) > 0
    assert e.check()["device"] == e.memory.nbytes
    with pytest.raises(UnknownName, match="swap"):
        engine(demotion="forget")


def test_forks_without_rows_share_until_they_differ() -> None:
    e = engine(rows=1)
    session = e.open()
    session.append(TEXT[:150])
    e.drain()
    forks = [session.fork() for _ in range(4)]
    one = e.check()["ram"]
    assert one == forks[0].status().memory_bytes > 0
    session.append([5, 6, 7])
    forks[0].append([8, 9])
    e.drain()
    assert e.check()["ram"] == 2 * one, "three still share, and the two that went on have one row"
    for each in (session, *forks):
        assert_whole(each)


def test_a_session_keeps_no_logits_but_its_own() -> None:
    e = engine(rows=4)
    sessions = [e.open() for _ in range(4)]
    for session in sessions:
        session.append(TEXT[:80])
    e.drain()
    for session in sessions:
        assert session.core.logits is not None
        assert session.core.logits.untyped_storage().nbytes() == session.core.logits.nbytes
