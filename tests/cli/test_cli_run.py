"""penstock run in this process: what it counts, cuts, keeps, refuses."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

import penstock
import penstock.models.load
from penstock.cli.lanes import Lane
from penstock.cli.options import RunOptions
from penstock.core import Budget
from penstock.testing import tiny_model

TEXT = "Call me Ishmael — some years ago, naïve and 30 years old, I thought I would sail about a little.\n" * 3
FIELDS = {
    "model", "memory", "budget", "tokens", "seconds", "tokens_per_second", "nll_mean", "nll_by_position", "step_ms",
    "step_ms_by_position", "memory_bytes", "rss_bytes",
}  # fmt: skip

Command = Callable[..., Any]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer(TEXT)["input_ids"]


def digest(folder: Path, tokens: list[int]) -> str:
    session = penstock.open(folder, "window", 32)
    session.ingest(tokens)
    return session.stats().digest


# -- figures ------------------------------------------------------------------------------------------------------


def test_the_summary_has_every_figure(command: Command, folder: Path, text: Path, ids: list[int]) -> None:
    ran = command("run", folder, "--input", text, "--budget", 40, "--json")
    assert (ran.code, ran.err) == (0, "")
    facts = ran.last
    assert set(facts) >= FIELDS
    assert facts["model"] == str(folder)
    assert (facts["memory"], facts["budget"]) == ("streaming-llm", 40)
    assert facts["tokens"] == facts["position"] == len(ids)
    assert facts["ended"] == "input"
    assert facts["digest"] == digest(folder, ids)
    assert set(facts["step_ms"]) == {"p50", "p95", "p99"}
    assert 0 < facts["memory_bytes"]["peak"] <= facts["memory_bytes"]["budget"]
    assert 0 < facts["rss_bytes"]["start"] <= facts["rss_bytes"]["peak"]
    assert facts["rss_bytes"]["end"] <= facts["rss_bytes"]["peak"]
    assert facts["tokens_per_second"] == pytest.approx(facts["tokens"] / facts["seconds"])
    for name in ("nll_by_position", "step_ms_by_position"):
        assert facts[name][0][0] == 0
        assert facts[name][-1][1] == len(ids)


def test_the_loss_is_the_mean_over_all_predictions(command: Command, folder: Path, text: Path, ids: list[int]) -> None:
    facts = command("run", folder, "--input", text, "--budget", 1000, "--chunk", 7, "--json").last
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss  # N - 1 predictions
    assert facts["nll_mean"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("limit", [1, 2, 63, 64, 65, 100, 10_000])
def test_tokens_is_an_exact_maximum(command: Command, folder: Path, text: Path, ids: list[int], limit: int) -> None:
    facts = command("run", folder, "--input", text, "--tokens", limit, "--json").last
    kept = ids[:limit]
    assert facts["tokens"] == len(kept)
    assert facts["digest"] == digest(folder, kept)
    assert facts["ended"] == ("tokens" if limit <= len(ids) else "input")
    assert (facts["nll_mean"] is None) is (len(kept) < 2)


def test_results_do_not_depend_on_the_chunk(command: Command, folder: Path, text: Path) -> None:
    runs = [
        command("run", folder, "--input", text, "--budget", 40, "--chunk", chunk, "--path", "eager", "--json").last
        for chunk in (1, 7, 500)
    ]
    assert len({run["digest"] for run in runs}) == 1
    assert runs[1]["nll_mean"] == pytest.approx(runs[0]["nll_mean"], rel=1e-5)
    assert runs[2]["nll_mean"] == pytest.approx(runs[0]["nll_mean"], rel=1e-5)


def test_a_folder_is_read_with_a_note_about_what_was_not(command: Command, folder: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "b.txt").write_text("the second file\n")
    (texts / "a.txt").write_text("the first file")
    (texts / "c.bin").write_bytes(b"\0")
    ran = command("run", folder, "--input", texts, "--json")
    whole = tmp_path / "whole.txt"
    whole.write_text("the first file\nthe second file\n")
    assert ran.last["digest"] == command("run", folder, "--input", whole, "--json").last["digest"]
    assert "c.bin" in ran.last["notes"][0]
    assert "c.bin" in ran.err


def test_without_a_terminal_there_is_a_plain_table(
    command: Command, folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "")
    ran = command("run", folder, "--input", text)
    assert ran.code == 0
    assert "\x1b" not in ran.out
    assert "tokens per second" not in ran.err  # progress comes every few seconds only
    assert f"{len(ran.out.splitlines()[0])}" != "0"
    assert "loss" in ran.out


def test_worlds_are_endless_and_follow_the_seed(command: Command, folder: Path) -> None:
    digests = [
        command("run", folder, "--input", "world:facts", "--tokens", 90, "--seed", seed, "--json").last["digest"]
        for seed in (0, 0, 5)
    ]
    assert digests[0] == digests[1] != digests[2]


# -- ask, save, resume --------------------------------------------------------------------------------------------


def test_the_answer_is_printed_as_text_or_told_in_the_summary(command: Command, folder: Path, text: Path) -> None:
    arguments = ("run", folder, "--input", text, "--tokens", 50, "--ask", "And then?", "--max-new", 6)
    facts = command(*arguments, "--json").last
    assert facts["question"] == "And then?"
    assert facts["tokens"] == 50  # what was read; question and answer are not
    assert facts["answer"]
    assert facts["answer"] in command(*arguments).out


def test_a_limit_cuts_the_stream_for_the_question_too(
    command: Command, folder: Path, text: Path, ids: list[int], tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    kept = tmp_path / "kept"
    command("run", folder, "--input", text, "--tokens", 50, "--ask", " And?", "--max-new", 1, "--save", kept)
    log = list(penstock.resume(kept).log.tail)
    assert log[:50] == ids[:50]
    assert tokenizer.decode(log[50:]).startswith(" And?")


def test_a_stream_in_two_runs_is_the_stream_in_one(
    command: Command, folder: Path, text: Path, ids: list[int], tmp_path: Path
) -> None:
    first, second, kept = tmp_path / "1.txt", tmp_path / "2.txt", tmp_path / "kept"
    data = TEXT.encode()
    cut = data.index(b"\xe2\x80\x94") + 1  # inside a character and inside a word
    first.write_bytes(data[:cut])
    second.write_bytes(data[cut:])
    # The end of the first file is an end: what it held back is let in, as the pieces that it was.
    one = command("run", folder, "--input", first, "--save", kept, "--json")
    assert one.last["saved"] == str(kept)
    two = command("run", "--resume", kept, "--input", second, "--json").last
    assert two["position"] == one.last["tokens"] + two["tokens"]
    # Cut by a limit instead, nothing is held back and the two runs are one.
    line = tmp_path / "line.txt"
    line.write_text(TEXT.splitlines(keepends=True)[0], encoding="utf-8")
    rest = tmp_path / "rest.txt"
    rest.write_text("".join(TEXT.splitlines(keepends=True)[1:]), encoding="utf-8")
    command("run", folder, "--input", line, "--save", kept, "--json")
    two = command("run", "--resume", kept, "--input", rest, "--budget", 64, "--memory", "streaming-llm", "--json").last
    assert two["position"] == len(ids)
    assert two["digest"] == digest(folder, ids)


def test_a_resumed_session_can_be_asked_without_reading(
    command: Command, folder: Path, text: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    asked = command("run", folder, "--input", text, "--save", kept, "--ask", "Who?", "--max-new", 4, "--json").last
    again = command("run", "--resume", kept, "--ask", "Where?", "--max-new", 4, "--json").last
    assert again["tokens"] == 0
    assert again["position"] > asked["tokens"]
    assert again["answer"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--memory", "window"), "saved with memory streaming-llm"),
        (("--memory", "streaming-llm:sinks=2"), "saved with memory streaming-llm"),
        (("--budget", "41"), "saved with a budget of 40"),
        (("--dtype", "bfloat16"), "saved in float32"),
    ],
)
def test_resuming_with_something_else_is_refused(
    command: Command, folder: Path, text: Path, tmp_path: Path, arguments: tuple[str, ...], word: str
) -> None:
    kept = tmp_path / "kept"
    command("run", folder, "--input", text, "--budget", 40, "--save", kept)
    before = kept.read_bytes()
    equal = ("--memory", "streaming-llm:sinks=4", "--budget", "40", "--input", text)
    assert command("run", "--resume", kept, *equal).code == 0
    ran = command("run", "--resume", kept, "--input", text, "--save", kept, *arguments)
    assert ran.code == 2
    assert word in ran.err
    assert kept.read_bytes() == before


# -- interruption -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "asks"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_ends_the_reading_and_everything_is_kept(
    command: Command,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    asks: bool,
) -> None:
    kept = tmp_path / "kept"
    read = Lane.read

    def signalled(self: Lane, tokens: list[int]) -> float:
        if self.session.tokens == 320:
            os.kill(os.getpid(), number)
        return read(self, tokens)

    monkeypatch.setattr(Lane, "read", signalled)
    arguments = ("--input", "world:facts", "--save", kept, "--ask", "So?", "--max-new", 3)
    ran = command("run", folder, *arguments, "--json")
    assert ran.code == 0
    assert ran.last["ended"] == "interrupted"
    assert 384 <= ran.last["tokens"] < 512
    assert (ran.last["answer"] is not None) is asks
    session = penstock.resume(kept)
    assert session.tokens >= ran.last["tokens"]
    assert asks or session.log.digest == ran.last["digest"]


def test_a_second_signal_aborts(
    command: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(self: object, tokens: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Lane, "read", stuck)
    ran = command("run", folder, "--input", "world:facts", "--save", tmp_path / "kept")
    assert ran.code == 130
    assert ran.err == "penstock: aborted.\n"
    assert os.listdir(tmp_path) == []


# -- the run without arguments ------------------------------------------------------------------------------------


def test_the_tour_compares_three_memories_and_draws_them(
    command: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(penstock.models.load, "TINY", folder)
    monkeypatch.chdir(tmp_path)
    ran = command("run", "--tokens", 600)
    assert ran.code == 0
    for name in ("streaming-llm", "window", "dense"):
        assert name in ran.out
    picture = (tmp_path / "penstock-run.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    facts = command("run", "--tokens", 300, "--json", "--plot", "p.svg").last
    assert [lane["memory"] for lane in facts["compared"]] == ["window", "dense"]
    assert facts["compared"][0]["tokens"] == 300
    assert (tmp_path / "p.svg").stat().st_size > 1000
    assert "compared" not in command("run", "--tokens", 30, "--json").last


def test_a_growing_memory_is_taken_out_when_its_loss_has_exploded(folder: Path) -> None:
    model = penstock.load(folder)
    lane = Lane(penstock.open(model, "dense", measure=True), compared=True)
    lane.session.meter.losses(1, [2.0] * 100_000)  # as if the loss had been small inside the context
    while lane.stopped is None and lane.session.tokens < 3000:
        lane.read([5] * 64)
    assert lane.stopped is not None
    assert lane.session.tokens >= 8 * 128


# -- what is refused ----------------------------------------------------------------------------------------------

WRONG: list[tuple[tuple[str, ...], str]] = [
    (("--memory", "streaming"), "or streaming-llm"),
    (("--memory", "window:sinks=3"), "unknown option of window 'sinks'"),
    (("--memory", "streaming-llm:sinks"), "write it as streaming-llm:key=value"),
    (("--memory", "streaming-llm:sinks=x"), "give a whole number"),
    (("--memory", "streaming-llm:positions=x"), "choose one of"),
    (("--budget", "4"), "give at least 5"),
    (("--budget", "many"), "cannot read the budget"),
    (("--budget", "30s"), "entries (4096) or bytes (64MiB)"),
    (("--budget", "100B"), "too few"),
    (("--tokens", "0"), "--tokens cannot be 0"),
    (("--tokens", "x"), "valid integer"),
    (("--chunk", "-1"), "--chunk cannot be -1"),
    (("--max-new", "0"), "--max-new cannot be 0"),
    (("--path", "compild"), "did you mean compiled?"),
    (("--dtype", "float3"), "choose one of float32"),
    (("--device", "gpu"), "cannot use the device 'gpu'"),
    (("--device", "meta"), "computes nothing"),
    (("--input", "world:nothing"), "unknown world"),
    (("--input", "no/such/file"), "there is no file or folder"),
    (("--resume", "no/such/file"), "there is no snapshot"),
    (("--save", "no/such/folder/file"), "there is no folder"),
    (("--save", "."), "is a folder"),
    (("--save", os.devnull), "is not a file"),
    (("--plot", "picture.doc"), "cannot draw"),
    (("--ask", ""), "write a question"),
    (("--bugdet", "3"), "--budget"),
    (("extra", "arguments"), "unexpected extra argument"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG)
def test_mistakes_are_one_sentence_before_any_work(
    command: Command, folder: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    for flags in ((), ("--json",)):
        ran = command("run", folder, *arguments, *flags)
        assert ran.code == 2
        assert ran.err.count("\n") == 1
        assert sentence in ran.err
        assert ran.err.rstrip().endswith((".", "?"))
        if flags:
            assert ran.last["error"] in ran.err
            assert len(ran.documents) == 1
        else:
            assert ran.out == ""


@pytest.mark.parametrize(("content", "word"), [(b"", "empty"), (b"PK\x03\x04\0\0", "binary")])
def test_empty_and_binary_files_are_refused(
    command: Command, folder: Path, tmp_path: Path, content: bytes, word: str
) -> None:
    path = tmp_path / "input"
    path.write_bytes(content)
    ran = command("run", folder, "--input", path)
    assert ran.code == 2
    assert word in ran.err


def test_models_that_are_not_there_are_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no-weights").mkdir()
    (tmp_path / "no-weights" / "config.json").write_text('{"model_type": "llama"}')
    for name, word in (("missing", "no model folder"), ("empty", "no config.json"), ("no-weights", "no weights")):
        ran = command("run", tmp_path / name, "--json")
        assert ran.code == 2
        assert word in ran.last["error"]


def test_debug_shows_the_traceback(command: Command) -> None:
    ran = command("run", "--memory", "nothing", "--debug")
    assert ran.code == 2
    assert "Traceback" in ran.err


def test_a_damaged_snapshot_is_a_failure(command: Command, folder: Path, text: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    command("run", folder, "--input", text, "--save", kept)
    kept.write_bytes(kept.read_bytes()[:-5])
    ran = command("run", "--resume", kept, "--json")
    assert ran.code == 1
    assert "damaged or cut short" in ran.last["error"]


def test_the_end_of_learned_positions_keeps_what_was_read(
    command: Command, tmp_path: Path, text: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model: Any = tiny_model("gpt2", vocab_size=len(tokenizer), n_positions=128)
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    kept = tmp_path / "kept"
    text.write_text(TEXT * 3, encoding="utf-8")
    arguments = ("run", tmp_path / "gpt2", "--input", text, "--chunk", 10, "--save", kept, "--json")
    refused = command(*arguments)
    assert refused.code == 2  # streaming-llm cannot be right on it
    ran = command(*arguments, "--memory", "dense")
    assert ran.code == 1
    assert "learned positions for 128 tokens" in ran.last["error"]
    summary = ran.documents[-2]
    assert summary["tokens"] == 120
    assert penstock.resume(kept).tokens == 120


def test_a_full_disk_while_saving_is_told_after_the_summary(
    command: Command, folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    command("run", folder, "--input", text, "--save", kept)
    before = kept.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("penstock.snapshot.save_file", full)
    ran = command("run", folder, "--input", text, "--tokens", 40, "--save", kept, "--json")
    assert ran.code == 1
    assert ran.last["error"].startswith(f"the snapshot {kept} was not written (No space left on device)")
    assert ran.documents[-2]["tokens"] == 40
    assert ran.documents[-2]["saved"] is None
    assert kept.read_bytes() == before


def test_options_are_checked_without_the_command_line() -> None:
    assert RunOptions(budget="64MiB").limit == 200_000
    assert RunOptions().is_tour
    assert not RunOptions(json=True).is_tour
    assert Budget.parse("64MiB").bytes == 64 << 20
