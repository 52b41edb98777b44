"""Memories and reducers on generated videos: the same questions for all, resumed where it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.cli import main
from penstock.compare import watching as module
from penstock.compare.results import Cache
from penstock.compare.watching import KINDS, Watching
from penstock.core import Budget
from penstock.methods import parse
from penstock.models.load import load
from penstock.models.vision.tower import VLM
from penstock.reducers import Chain
from penstock.reducers import parse as reducer
from penstock.watch import Limits, Pipeline

CHAINS = (Chain(), Chain([reducer("timechat")]), Chain([reducer("fixed-rate:rate=1")]))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EACH", 3)


@pytest.fixture(scope="module")
def model() -> Any:
    return load(VLM)


def watching(model: Any, folder: Path, **given: Any) -> Watching:
    given = {"methods": [parse("window")], "chains": CHAINS, "streams": 1} | given
    return Watching(model, budgets=[Budget(entries=32)], distances=(16, 60), cache=Cache(folder), **given)


def test_a_row_per_memory_and_reducer_and_the_same_questions(model: Any, tmp_path: Path) -> None:
    found = watching(model, tmp_path)
    seen: list[str] = []
    found.run(lambda now: seen.append(now.unit))
    assert set(seen) == {"frames"}
    assert [(row["memory"], row["reduce"]) for row in found.rows] == [("window", str(chain)) for chain in CHAINS]
    (blind,) = found.baselines
    for row in [blind, *found.rows]:
        assert [each["n"] for each in row["recall"]] == [each["n"] for each in blind["recall"]]
        assert {kind: row["kinds"][kind]["n"] for kind in KINDS} == {kind: blind["kinds"][kind]["n"] for kind in KINDS}
        assert row["questions"] == sum(each["n"] for each in [*row["recall"], *row["kinds"].values()])
    whole, dropped, slow = found.rows[:3]
    assert whole["tokens_dropped"] == 0
    assert whole["frames"] == found.frames_of(found.pairs[1])
    assert dropped["tokens"] + dropped["tokens_dropped"] == whole["tokens"]
    assert dropped["tokens_dropped"] > 0
    assert abs(slow["tokens"] - whole["tokens"] / 2) <= found.per_frame  # 1 of 2 frames per second
    assert whole["recall"][1]["recall"] < 0.3  # the window has lost it


def test_what_was_done_is_not_done_again(model: Any, tmp_path: Path) -> None:
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps > 30

    first = watching(model, tmp_path, chains=CHAINS[:1])
    first.run(stop=stop)
    assert first.ended == "interrupted"
    done = len(first.rows) + len(first.baselines)
    assert done == 1  # blind
    second = watching(model, tmp_path, chains=CHAINS[:1])
    jobs: list[int] = []
    second.run(lambda now: jobs.append(now.job))
    assert second.ended == "done"
    assert min(jobs) == done
    assert second.baselines == first.baselines


def test_a_reduced_stream_is_the_one_that_penstock_watch_reads(model: Any, tmp_path: Path) -> None:
    from penstock.core import SimulatedClock
    from penstock.io.video.world import Generated
    from penstock.triggers import parse as trigger
    from penstock.watch import Requests, Watch
    from penstock.watch.opening import open_sight
    from penstock.worlds.shapes import Shapes

    found = watching(model, tmp_path, methods=[parse("streaming-llm")], chains=CHAINS[1:2])
    found.run()
    row, sight = found.rows[0], open_sight(None, "streaming-llm", "32")
    pipeline = Pipeline(Generated(Shapes(0), "shapes", rate=2.0), sight.eyes, CHAINS[1], SimulatedClock())
    watch = Watch(
        pipeline, sight.eyes, sight.reader, Requests([], trigger("change"), sight.reader),
        limits=Limits(frames=row["frames"]),
    )  # fmt: skip
    for _ in watch.run():
        pass
    assert (watch.counts.tokens_kept, watch.counts.tokens_dropped) == (row["tokens"], row["tokens_dropped"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "shapes.png"
    given = ["compare", "--world", "shapes", "--streams", "1", "--budget", "32", "--distance", "16"]
    given += ["--cache", str(tmp_path), "--memory", "window", "--reduce", "none", "--reduce", "timechat + fixed-rate"]
    assert main([*given, "--json", "--plot", str(plot)]) == 0
    *progress, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all("progress" in document for document in progress)
    assert [row["reduce"] for row in last["rows"]] == ["none", "timechat + fixed-rate"]
    assert {"recall", "kinds", "bytes", "step_ms", "frames_per_second", "tokens_dropped"} <= set(last["rows"][0])
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main(given) == 0
    shown = capsys.readouterr()
    assert "accuracy by kind of question" in shown.out
    assert "window + timechat" in shown.out
    assert "per second" not in shown.err, "what is cached is not run"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--world", "shapes", "--tokens", "5000"], "--streams"),
        (["--world", "shapes", "--reduce", "timechatt"], "timechat"),
        (["--world", "shapes", "--reduce", "stc-cache"], "changes the tower itself"),
        (["--reduce", "timechat"], "add --world shapes"),
        (["--world", "shapes", "--distance", "999999"], "give at most"),
        (["--world", "triangles"], "shapes"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *arguments]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1
