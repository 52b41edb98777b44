"""penstock inspect: a table, a picture, one document."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i}: the turbine number {i * 7919 % 1000} runs at {i} bar.\n" for i in range(200)))
    return path


def test_a_document_lists_the_heads_of_every_layer(command: Command, folder: Path, text: Path) -> None:
    arguments = ("inspect", folder, "--input", text, "--tokens", 700, "--window", 32, "--json")
    ran = command(*arguments)
    assert ran.code == 0, ran.err
    assert len(ran.documents) == 1
    facts = ran.last
    assert facts["input"] == str(text)
    assert facts["settings"]["length"] == 128  # the context of the model
    assert facts["settings"]["window"] == 32
    assert [layer["index"] for layer in facts["layers"]] == [0, 1, 2]
    for layer in facts["layers"]:
        assert [head["head"] for head in layer["heads"]] == [0, 1, 2, 3]
        assert [head["kv_head"] for head in layer["heads"]] == [0, 0, 1, 1]
        for head in layer["heads"]:
            total = head["first"] + head["local"] + head["far"] + head["learned"]
            assert total == pytest.approx(1.0, abs=1e-5)
            assert 0 < head["distance"] < 128
            assert head["kind"] in ("retrieval", "sink", "local", "broad")
    assert [[len(row) for row in table] for table in facts["gates"].values()] == [[2, 2, 2]] * 3
    heads = facts["layers"][1]["heads"][2:]
    share = sum(head["local"] / (head["local"] + head["far"]) for head in heads) / 2
    assert facts["gates"]["local"][1][1] == pytest.approx(share)
    assert facts["gates"]["copy"][1][1] == max(head["copy"] for head in heads)
    assert facts["plot"] is None
    assert command(*arguments).last == facts
    other = command(*arguments, "--seed", 1).last
    assert other["gates"]["old_mass"] == facts["gates"]["old_mass"]
    assert other["gates"]["copy"] != facts["gates"]["copy"]


def test_heads_are_drawn(command: Command, folder: Path, text: Path, tmp_path: Path) -> None:
    plot = tmp_path / "heads.png"
    ran = command("inspect", folder, "--input", text, "--window", 32, "--plot", plot)
    assert ran.code == 0, ran.err
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "retrieval heads" in ran.out
    assert f"plot: {plot}" in ran.out
    assert command("inspect", folder, "--input", text, "--window", 32, "--plot", plot, "--json").last["plot"] == str(
        plot
    )


def test_without_json_a_picture_is_left(
    command: Command, folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("inspect", folder, "--input", text, "--window", 32).code == 0
    assert (tmp_path / "penstock-inspect.png").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("--tokens", 0), "tokens"), (("--epsilon", 2), "epsilon"), (("--window", 500), "window"),
     (("--plot", "heads.txt"), ".png"), (("--input", "missing.txt"), "missing.txt"), (("--seed", -1), "seed")],
)  # fmt: skip
def test_mistakes_are_refused_in_one_sentence(
    command: Command, folder: Path, arguments: tuple[Any, ...], word: str
) -> None:
    ran = command("inspect", folder, *arguments)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert word in ran.err


def test_a_text_that_is_too_short_is_refused(command: Command, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("hello")
    ran = command("inspect", folder, "--input", path)
    assert ran.code == 2
    assert "longer" in ran.err
