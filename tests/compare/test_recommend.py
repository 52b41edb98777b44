"""Choices: the limits are kept, the question decides, the reason is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from penstock.compare.recommend import QUESTIONS, Limits, recall_for, recommend
from penstock.compare.results import SHIPPED, stored_rows
from penstock.errors import InputError
from penstock.models.load import load

MIB = 1 << 20


def row(memory: str, near: float, far: float | None, nll: float, device: int, ram: int = 0, **step: float) -> Any:
    recall = [{"from": 0, "to": 256, "recall": near, "n": 20}, {"from": 256, "to": 2560, "recall": 0.5, "n": 20}]
    if far is not None:
        recall.append({"from": 2560, "to": 12_800, "recall": far, "n": 40})
    return {
        "memory": memory, "budget": 256, "recall": recall, "nll_mean": nll, "tokens": 20_000,
        "bytes": {"device": device * MIB, "ram": ram * MIB, "disk": 0},
        "step_ms": {"p50": step.get("p50", 5.0), "p99": step.get("p99", 9.0), "slope_per_million": 0.0},
    }  # fmt: skip


WINDOW = row("window", 0.95, 0.0, 3.2, 1)
ARCHIVE = row("archive", 0.95, 0.97, 3.2, 2, ram=40, p50=12.0, p99=30.0)
DENSE = row("dense", 0.9, 0.9, 4.4, 100, p99=200.0)
ALL = [WINDOW, ARCHIVE, DENSE]


@pytest.mark.parametrize(
    ("question", "limits", "chosen", "says"),
    [
        ("far", Limits(), "archive", "recalls 97% of facts 10 budgets back or more .* 40.0 MiB in RAM; the next"),
        ("near", Limits(), "window", "95% of facts within its budget"),
        ("loss", Limits(), "window", "3.200 nats"),
        ("far", Limits(device=MIB), "window", "the other 2 compared rows do not keep the limits"),
        ("far", Limits(ram=0), "dense", "recalls 90%"),
        ("far", Limits(ram=0, step_ms=20.0), "window", "recalls 0%"),
    ],
)
def test_the_question_and_the_limits_decide(question: str, limits: Limits, chosen: str, says: str) -> None:
    choice = recommend(ALL, question, limits)
    assert choice.row["memory"] == chosen
    assert re.search(says, choice.reason), choice.reason
    assert choice.reason.endswith(".")
    assert choice.reason == recommend(ALL[::-1], question, limits).reason


def test_equal_recall_is_decided_by_bytes() -> None:
    small = row("small", 0.94, 0.95, 3.2, 1)
    assert recommend([ARCHIVE, small], "far", Limits()).row["memory"] == "small"
    assert recommend([ARCHIVE, {**small, "recall": WINDOW["recall"]}], "far", Limits()).row["memory"] == "archive"


def test_nothing_that_fits_is_told_with_the_least_that_would() -> None:
    with pytest.raises(InputError, match=f"the smallest, window with a budget of 256, took {MIB}"):
        recommend(ALL, "far", Limits(device=1000))
    with pytest.raises(InputError, match="loosen"):
        recommend(ALL, "far", Limits(step_ms=1.0))


def test_rows_without_such_questions_are_not_chosen() -> None:
    short = row("short", 1.0, None, 3.0, 1)
    assert recall_for(short, "far") is None
    assert recommend([short, WINDOW], "far", Limits()).row["memory"] == "window"
    with pytest.raises(InputError, match="run penstock compare"):
        recommend([short], "far", Limits())
    assert recommend([short], "near", Limits()).row["memory"] == "short"


def test_the_package_brings_a_comparison_to_choose_from(tmp_path: Path) -> None:
    """Without any comparison of the user's own: enough methods, bins far enough, a choice for every question."""
    assert json.loads(SHIPPED.read_text())["fingerprint"] == load().fingerprint, "made with other weights"
    rows = stored_rows(tmp_path)
    assert {row["model"] for row in rows} == {"tiny"}
    assert len({row["memory"] for row in rows}) >= 8
    for question in QUESTIONS:
        assert len(recommend(rows, question, Limits()).reason) > 20
    far = recommend(rows, "far", Limits()).row
    window = next(row for row in rows if row["memory"] == "window")
    assert (recall_for(far, "far") or 0.0) > (recall_for(window, "far") or 0.0) + 0.3
    assert far["bytes"]["ram"] > 0
    near = recommend(rows, "near", Limits(ram=0)).row
    assert near["bytes"]["ram"] == 0
