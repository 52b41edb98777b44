"""penstock methods, check, doctor, --version: what there is, and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

import penstock
from penstock.cli import doctor
from penstock.methods import registry
from penstock.testing import tiny_model

Command = Callable[..., Any]


def test_methods_lists_everything_registered(command: Command) -> None:
    found = command("methods", "--json").last["methods"]
    assert [method["name"] for method in found] == list(registry())
    for method in found:
        kind = registry()[method["name"]]
        assert set(method) == {"name", "title", "source", "slots", "options", "claims", "waived", "differs"}
        assert set(method["claims"]) == kind.claims
        assert method["waived"] == kind.waived
    out = command("methods").out
    assert all(name in out for name in registry())
    assert not any(line.endswith(" ") for line in out.splitlines())


def test_check_tells_why_a_model_is_supported(command: Command, folder: Path) -> None:
    ran = command("check", folder, "--json")
    assert ran.code == 0
    facts = ran.last
    assert facts["supported"] is True
    assert facts["family"] == "llama"
    assert len(facts["layers"]) == 3
    assert facts["layers"][0] == {
        "index": 0, "query_heads": 4, "kv_heads": 2, "width": 16, "window": None, "positions": "rotary",
    }  # fmt: skip
    assert 0 <= facts["self_check"]["difference"] <= facts["self_check"]["tolerance"]
    assert all(found["works"] for found in command("check", folder, "--budget", 256, "--json").last["methods"].values())
    for found in facts["methods"].values():  # half of a context of 128 is too little for some
        assert found["works"] or "budget" in found["why"]
    assert "rotary" in command("check", folder).out


@pytest.mark.parametrize(
    ("family", "positions", "window", "refused"),
    [("gpt_neox", "rotary on 4 of 16 channels", None, []), ("gemma3", "rotary", 16, []),
     ("gpt2", "learned, 256 of them", None, sorted({*registry()} - {"dense"}))],
)  # fmt: skip
def test_check_tells_what_is_special(
    command: Command, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, family: str, positions: str,
    window: int | None, refused: list[str],
) -> None:  # fmt: skip
    model: Any = tiny_model(family, vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    facts = command("check", tmp_path, "--json").last
    assert facts["layers"][0]["positions"] == positions
    assert facts["layers"][0]["window"] == window
    unfit = {name for name, found in facts["methods"].items() if not found["works"]}
    assert unfit >= set(refused)
    assert not unfit & {"dense", "streaming-llm", "window"} - set(refused)
    for name in refused:
        assert facts["methods"][name]["why"].endswith(".")


def test_check_tells_why_a_model_is_refused(
    command: Command, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = AutoConfig.for_model("bloom", hidden_size=32, n_layer=1, n_head=2, vocab_size=len(tokenizer))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ran = command("check", tmp_path, "--json")
    assert ran.code == 2
    assert ran.last["supported"] is False
    assert "Bloom" in ran.last["error"]
    plain = command("check", tmp_path)
    assert plain.code == 2
    assert "refused" in plain.out
    assert command("run", tmp_path, "--tokens", 5).code == 2


def test_check_of_nothing_is_a_mistake(command: Command, tmp_path: Path) -> None:
    ran = command("check", tmp_path / "missing", "--json")
    assert ran.code == 2
    assert "no model folder" in ran.last["error"]


def test_doctor_tells_everything_it_looked_at(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = {"name": "g++", "works": True, "error": None, "seconds": 1.0}
    monkeypatch.setattr(doctor, "find_compiler", lambda: compiler)
    monkeypatch.setattr(doctor, "_BUFFER", 1 << 22)
    built = doctor.describe()
    monkeypatch.setattr(doctor, "describe", lambda: {**built, "uses": None})
    facts = command("doctor", "--json").last
    assert set(facts) == {
        "versions", "system", "processor", "features", "memory_bytes", "threads", "bandwidth_bytes_per_second",
        "accelerator", "compiler", "native", "path", "extras", "tiny_model",
    }  # fmt: skip
    assert facts["versions"]["torch"]
    assert facts["bandwidth_bytes_per_second"] > 1e8
    assert facts["path"]["path"] == "auto: compiled"
    assert facts["extras"]["plot"]["installed"] is True
    assert "g++, works" in command("doctor").out


def test_doctor_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"name": None, "works": False, "error": "no compiler", "seconds": 0.0}
    built = doctor.describe()
    monkeypatch.setattr(doctor, "describe", lambda: {**built, "uses": "avx2"})
    assert doctor.chosen_path(missing)["path"] == "auto: native (avx2)"
    monkeypatch.setattr(doctor, "describe", lambda: {**built, "uses": None})
    assert "install g++" in doctor.chosen_path(missing)["why"]
    monkeypatch.setattr(doctor, "_is_installed", lambda name: False)
    assert doctor.extras()["plot"]["install"] == "pip install 'penstock[plot]'"


def test_version(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("--version").out == f"penstock {penstock.__version__}\n"
    assert command("--version", "--json").last == {"penstock": penstock.__version__}


@pytest.mark.parametrize("arguments", [(), ("--help",), ("run", "--help"), ("methods", "-h")])
def test_help_is_help(command: Command, arguments: tuple[str, ...]) -> None:
    ran = command(*arguments)
    assert "Usage: penstock" in ran.out + ran.err


@pytest.mark.parametrize(("arguments", "word"), [(("rum",), "run"), (("methods", "--jsn"), "--json")])
def test_unknown_commands_and_options_are_refused_with_suggestions(
    command: Command, arguments: tuple[str, ...], word: str
) -> None:
    ran = command(*arguments)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert word in ran.err
