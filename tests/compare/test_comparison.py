"""Comparisons: rows, the cache, what happens when one memory fails or somebody stops them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.compare import Cache, Comparison, Progress, Stream, make_plan
from penstock.compare import comparison as module
from penstock.compare.results import stored_rows
from penstock.core import Budget
from penstock.errors import BudgetError, MemoryStateError
from penstock.methods import parse
from penstock.models.load import Model

FIELDS = {"memory", "budget", "recall", "nll_mean", "bytes", "step_ms", "ingest_tokens_per_second", "first_token_ms"}


@pytest.fixture
def short(stream: Stream) -> Stream:
    return Stream("short", stream.ids[:640])


def made(
    model: Model, stream: Stream, folder: Path, *names: str, budgets: tuple[int, ...] = (64,), fresh: bool = False
) -> Comparison:
    plans = [
        make_plan(stream, budget, (60,), per_bin=20) if stream.facts else make_plan(stream, budget)
        for budget in budgets
    ]
    each = [Budget(entries=budget) for budget in budgets]
    return Comparison(model, [parse(name) for name in names], each, stream, plans, cache=Cache(folder, fresh))


def test_one_row_per_method_and_budget_with_the_baselines_beside_it(
    model: Model, stream: Stream, tmp_path: Path
) -> None:
    found = made(model, stream, tmp_path, "window", "dense", budgets=(48, 64))
    found.run()
    assert found.ended == "done"
    assert [(row["memory"], row["budget"]) for row in found.rows] == [
        ("window", 48), ("window", 64), ("dense", 48), ("dense", 64)
    ]  # fmt: skip
    assert [row["memory"] for row in found.baselines] == ["oracle", "oracle", "text-search", "text-search"]
    for row in found.rows:
        assert set(row) >= FIELDS | {"oracle", "text_search"}
        assert set(row["bytes"]) == {"device", "ram", "disk"}
        assert set(row["step_ms"]) == {"p50", "p99", "slope_per_million"}
        bins = [(each["from"], each["to"], each["n"]) for each in row["recall"]]
        assert bins == [(each["from"], each["to"], each["n"]) for each in row["oracle"]]
        assert all(n >= 20 for _, _, n in bins)
    assert found.rows[2]["bytes"] == found.rows[3]["bytes"], "dense reads once for both budgets"
    json.dumps(found.rows, allow_nan=False)


def test_what_was_done_is_not_done_again(
    model: Model, short: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(model, short, tmp_path, "window", "streaming-llm")
    first.run()
    monkeypatch.setattr(module, "read", lambda *_: pytest.fail("read again"))
    again = made(model, short, tmp_path, "streaming-llm", "window")
    again.run()
    assert again.rows == first.rows[::-1]
    other = made(model, short, tmp_path, "streaming-llm:sinks=2")
    assert other._known(other.jobs[0]) is None
    assert made(model, short, tmp_path, "window", fresh=True)._known(first.jobs[0]) is None
    assert not list(tmp_path.glob(".*")), "parts of files are left"


def test_a_damaged_file_counts_as_absent(model: Model, short: Stream, tmp_path: Path) -> None:
    found = made(model, short, tmp_path, "window")
    found.run()
    [file] = tmp_path.glob("*.json")
    file.write_text(file.read_text()[:-20])
    assert found._known(found.jobs[0]) is None
    assert list(found.cache.rows()) == []


def test_an_interrupted_comparison_goes_on_with_the_next_method(model: Model, short: Stream, tmp_path: Path) -> None:
    seen: list[Progress] = []
    first = made(model, short, tmp_path, "window", "streaming-llm", "dense")
    first.run(seen.append, stop=lambda: bool(seen) and seen[-1].job == 1 and seen[-1].tokens > 128)
    assert first.ended == "interrupted"
    assert [row["memory"] for row in first.rows] == ["window"]
    seen.clear()
    second = made(model, short, tmp_path, "window", "streaming-llm", "dense")
    second.run(seen.append)
    assert {now.memory for now in seen} == {"streaming-llm", "dense"}
    assert [row["memory"] for row in second.rows] == ["window", "streaming-llm", "dense"]


def test_a_broken_method_does_not_lose_the_others(
    model: Model, short: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.read

    def breaking(model: Model, method: Any, *rest: Any) -> Any:
        if method.name == "window":
            raise MemoryStateError("it tore: mend it.")
        if method.name == "dense":
            raise IndexError("7")
        return real(model, method, *rest)

    monkeypatch.setattr(module, "read", breaking)
    found = made(model, short, tmp_path, "window", "dense", "streaming-llm")
    found.run()
    assert [row.get("error") for row in found.rows] == ["it tore: mend it.", "unexpected IndexError: 7", None]
    assert set(found.rows[0]) >= FIELDS
    assert found._known(found.jobs[0]) is None, "a failure is tried again"


def test_a_budget_too_small_is_refused_before_any_work(model: Model, short: Stream, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="give at least 5"):
        made(model, short, tmp_path, "window", "streaming-llm", budgets=(3,))


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_cache(
    model: Model, short: Stream, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    found = made(model, short, tmp_path / "file" / "cache", "window")
    found.run()
    assert found.ended == "done"
    assert "--cache" in (found.cache.trouble or "")


def test_stored_rows_are_those_of_the_package_and_the_newest_of_the_cache(
    model: Model, short: Stream, tmp_path: Path
) -> None:
    found = made(model, short, tmp_path, "window")
    found.run()
    shipped = tmp_path / "shipped.json"
    old = {**found.rows[0], "nll_mean": 9.0}
    other = {**old, "memory": "other"}
    shipped.write_text(json.dumps({"model": "tiny", "stream": "short", "rows": [old, other, {**old, "error": "x"}]}))
    rows = stored_rows(tmp_path, shipped)
    assert sorted((row["memory"], row["nll_mean"] == 9.0) for row in rows) == [("other", True), ("window", False)]
