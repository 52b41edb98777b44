"""penstock compare and penstock recommend in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.cli import compare as module
from penstock.compare import comparison as passes

Command = Callable[..., Any]

SHORT = ("--tokens", 2400, "--budget", 64, "--seed", 3, "--questions", 20)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "penstock" / "compare"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("Call me Ishmael: some years ago, never mind how long precisely.\n" * 20)
    return path


def test_the_last_document_holds_a_row_per_method_and_budget(command: Command, tmp_path: Path, cache: Path) -> None:
    plot = tmp_path / "compared.png"
    ran = command("compare", "--memory", "window", "--memory", "streaming-llm", *SHORT, "--json", "--plot", plot)
    assert ran.code == 0, ran.err
    assert [(row["memory"], row["budget"]) for row in ran.last["rows"]] == [("window", 64), ("streaming-llm", 64)]
    for row in ran.last["rows"]:
        assert [set(each) for each in row["recall"]] == [{"from", "to", "recall", "n"}] * len(row["recall"])
        assert all(each["n"] >= 20 for each in row["recall"])
        within, beyond = row["recall"][0], row["recall"][-1]
        assert within["to"] <= 64
        assert within["recall"] > beyond["recall"]
        assert beyond["recall"] < 0.2
        assert row["oracle"][-1]["recall"] > 0.8
        assert row["text_search"][-1]["recall"] > 0.8
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert all("progress" in document for document in ran.documents[:-1])
    assert len(list(cache.glob("*.json"))) == 4

    again = command("compare", "--memory", "window", "--memory", "streaming-llm", *SHORT)
    assert again.code == 0
    assert "per second" not in again.err, "what is cached is not run"
    for word in ("oracle", "text-search", "window", "streaming-llm", "recall by distance", "disk"):
        assert word in again.out

    told = command("recommend", "--question", "near", "--bytes", "1GiB", "--json").last
    assert told["reason"].endswith(".")
    assert {"memory", "budget", "row", "runners_up"} <= set(told)


def test_a_text_is_compared_by_loss_alone(command: Command, folder: Path, text: Path) -> None:
    ran = command(
        "compare", folder, "--memory", "window", "--memory", "dense", "--input", text, "--budget", 32, "--json"
    )
    assert ran.code == 0, ran.err
    for row in ran.last["rows"]:
        assert row["recall"] == []
        assert row["nll_mean"] > 0
        assert row["first_token_ms"] is None
        assert row["tokens"] == ran.last["tokens"] < 20_000
    assert any("tokens" in note for note in ran.last["notes"])
    assert "loss, peak bytes" in command("compare", folder, "--memory", "window", "--input", text, "--budget", 32).out


def test_a_broken_memory_fails_alone(command: Command, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = passes.read

    def breaking(model: Any, method: Any, *rest: Any) -> Any:
        if method.name == "window":
            raise IndexError("7")
        return real(model, method, *rest)

    monkeypatch.setattr(passes, "read", breaking)
    ran = command("compare", "--memory", "window", "--memory", "dense", "--input", text, "--json")
    assert ran.code == 1
    assert [row.get("error") for row in ran.last["rows"]] == ["unexpected IndexError: 7", None]
    assert "window with a budget of 256 failed" in ran.err
    assert "failed" in command("compare", "--memory", "window", "--memory", "dense", "--input", text).out


def test_ctrl_c_shows_what_is_done(command: Command, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pressed:
        """Interrupts that were flagged when the second memory began."""

        flagged = False

        def __enter__(self) -> Pressed:
            return self

        def __exit__(self, *_: object) -> None: ...

        def next_phase(self) -> None: ...

    pressed = Pressed()
    real = passes.read

    def reading(model: Any, method: Any, *rest: Any) -> Any:
        pressed.flagged = method.name == "dense"
        return real(model, method, *rest)

    monkeypatch.setattr(module, "Interrupts", lambda: pressed)
    monkeypatch.setattr(passes, "read", reading)
    ran = command("compare", "--memory", "window", "--memory", "dense", "--input", text)
    assert ran.code == 130
    assert "interrupted: the same command goes on" in ran.out
    assert "window" in ran.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--memory", "windw"), "did you mean window"),
        (("--memory", "streaming-llm", "--budget", 3), "give at least 5"),
        (("--memory", "window", "--budget", "30s"), "no seconds"),
        (("--world", "facst"), "did you mean facts"),
        (("--world", "facts", "--input", "x"), "give one of them"),
        (("--input", "nowhere.txt"), "no file or folder"),
        (("--distance", 50_000), "longer than the stream"),
        (("--world", "library", "--distance", 100), "only facts and shapes"),
        (("--memory", "window", "--tokens", 500), "fewer than 20 questions"),
        (("--questions", 3), "from 20 on"),
        (("--plot", "x.txt"), "cannot draw"),
        (("--cache", __file__), "give a folder"),
    ],
)
def test_mistakes_are_told_in_one_sentence(command: Command, arguments: tuple[object, ...], says: str) -> None:
    ran = command("compare", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--question", "fra"), "did you mean far"),
        (("--bytes", "much"), "cannot read the"),
        (("--latency", 0), "above 0"),
        (("nomodel",), "unknown compared model"),
        (("--bytes", 1), "give at least that"),
    ],
)
def test_a_recommendation_refuses_what_it_cannot_know(
    command: Command, arguments: tuple[object, ...], says: str, cache: Path
) -> None:
    cache.mkdir(parents=True)
    recall = [{"from": 0, "to": 64, "recall": 1.0, "n": 20}, {"from": 640, "to": 3200, "recall": 0.5, "n": 20}]
    row = {
        "memory": "window", "budget": 64, "recall": recall, "nll_mean": 3.0, "tokens": 4000,
        "bytes": {"device": 9999, "ram": 0, "disk": 0}, "step_ms": {"p50": 1.0, "p99": 2.0, "slope_per_million": 0.0},
    }  # fmt: skip
    stored = {"schema": 1, "key": {}, "made": 1.0, "model": "tiny", "stream": "facts", "row": row}
    (cache / "a.json").write_text(json.dumps(stored))
    ran = command("recommend", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err


def test_a_recommendation_gives_the_choice_its_reason_and_the_runners_up(command: Command) -> None:
    assert command("compare", "--memory", "window", "--memory", "dense", *SHORT).code == 0
    ran = command("recommend", "--question", "near")
    assert ran.code == 0, ran.err
    first, second, *_ = ran.out.splitlines()
    assert first.startswith("--memory ")
    assert second.startswith("It recalls ")
    assert "window" in ran.out
    assert "dense" in ran.out
