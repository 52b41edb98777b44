"""Passes side by side: the same rows as one after the other, and what happens when a process dies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.compare import Cache, Comparison, Progress, Stream, make_plan
from penstock.compare.parallel import Spec, _lost, cores, workers_for
from penstock.core import Budget
from penstock.methods import parse
from penstock.models.load import Model


def made(model: Model, stream: Stream, folder: Path) -> Comparison:
    plans = [make_plan(stream, 64, (60,), per_bin=20)]
    methods = [parse("window"), parse("streaming-llm")]
    return Comparison(model, methods, [Budget(entries=64)], stream, plans, cache=Cache(folder))


def test_processes_give_the_rows_of_one_process(model: Model, stream: Stream, tmp_path: Path) -> None:
    short = Stream("short", stream.ids[:1600], tuple(fact for fact in stream.facts if fact.end <= 1600))
    seen: list[Progress] = []
    alone, beside = made(model, short, tmp_path / "a"), made(model, short, tmp_path / "b")
    alone.run()
    beside.run(seen.append, spec=Spec(None), workers=2)
    assert beside.ended == "done"
    for one, other in zip(alone.baselines + alone.rows, beside.baselines + beside.rows):
        for name in ("memory", "budget", "recall", "bytes", "tokens", "questions"):
            assert one[name] == other[name], name
        assert one["nll_mean"] == pytest.approx(other["nll_mean"], abs=1e-4)
    assert {now.memory for now in seen} >= {"window", "streaming-llm"}
    assert len(list((tmp_path / "b").glob("*.json"))) == 4


def test_stopped_processes_leave_what_is_done(model: Model, stream: Stream, tmp_path: Path) -> None:
    found = made(model, stream, tmp_path)
    found.run(stop=lambda: True, spec=Spec(None), workers=2)
    assert found.ended == "interrupted"
    assert found.rows == []


class Process:
    def __init__(self, alive: bool) -> None:
        self.is_alive = lambda: alive


def test_the_job_of_a_dead_process_fails_and_the_others_go_on() -> None:
    busy, left = {0: 4, 1: 5}, {4, 5, 6}
    workers: list[Any] = [Process(False), Process(True)]
    [news] = _lost(workers, busy, left)
    assert (news.job, news.ended) == (4, True)
    assert "--jobs 1" in (news.error or "")
    assert left == {5, 6}
    assert busy == {1: 5}
    assert {each.job for each in _lost([Process(False), Process(False)], busy, left)} == {5, 6}
    assert not left


def test_little_to_read_needs_no_processes(model: Model) -> None:
    assert workers_for(model, 4, 2400) == 1
    assert workers_for(model, 8, 50_000) == min(4, cores())
