"""The real program in processes of its own: pipes, signals, closed outputs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

import penstock

PENSTOCK = [sys.executable, "-m", "penstock"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LIMIT = 120  # seconds: an unending process fails instead of hanging


def started(*arguments: object) -> subprocess.Popen[bytes]:
    command = [*PENSTOCK, *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )


def test_a_pipe_is_read_as_its_bytes_arrive(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    text = "a log line — with ümläuts and 日本語\n" * 4 + "and an end without a line end"
    data = text.encode()
    with started("run", folder, "--input", "-", "--json") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for start in range(0, len(data) // 2, 5):  # cuts characters in two
            process.stdin.write(data[start : start + 5])
            process.stdin.flush()
        process.stdin.flush()
        sent = data[: start + 5]
        waiting = json.loads(process.stdout.readline())["progress"]
        while waiting["tokens"] < len(tokenizer(sent.decode("utf-8", "ignore"))["input_ids"]) - 12:
            waiting = json.loads(process.stdout.readline())["progress"]  # not before more has come in than is held
        out, err = process.communicate(data[start + 5 :], timeout=LIMIT)
    assert (process.returncode, err) == (0, b"")
    summary = json.loads(out.splitlines()[-1])
    ids = tokenizer(text)["input_ids"]
    session = penstock.open(folder, "window", 8)
    session.ingest(ids)
    assert summary["tokens"] == len(ids)
    assert summary["digest"] == session.log.digest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_with_the_summary_and_the_snapshot(folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    kept = tmp_path / "kept"
    with started("run", folder, "--input", "-", "--save", kept, "--json") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"tail -f is waiting for the next line\n" * 5)
        process.stdin.flush()
        while json.loads(process.stdout.readline())["progress"]["tokens"] == 0:
            pass
        process.send_signal(number)
        rest = process.stdout.read()
        process.wait(LIMIT)
    assert process.returncode == 0
    assert all(json.loads(line) for line in rest.splitlines())
    summary = json.loads(rest.splitlines()[-1])
    assert summary["ended"] == "interrupted"
    assert penstock.resume(kept).log.digest == summary["digest"]


def test_a_closed_output_ends_quietly_and_keeps_what_was_read(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    arguments = ("run", folder, "--input", "world:facts", "--path", "eager", "--save", kept, "--json")
    with started(*arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()  # as head does
        process.wait(LIMIT)
        assert process.returncode == 0
        assert process.stderr.read() == b""
    assert penstock.resume(kept).tokens > 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_output_is_a_failure_in_one_sentence(folder: Path) -> None:
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            [*PENSTOCK, "run", str(folder), "--tokens", "20"], stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT,
            timeout=LIMIT, check=False,
        )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.count(b"\n") == 1
    assert b"No space left" in ran.stderr


def test_a_closed_standard_input_is_a_mistake(folder: Path) -> None:
    command = " ".join([*PENSTOCK, "run", str(folder), "--input", "-"])
    ran = subprocess.run(
        ["sh", "-c", f"{command} <&-"], capture_output=True, env=ENVIRONMENT, timeout=LIMIT, check=False
    )
    assert ran.returncode == 2
    assert b"standard input" in ran.stderr
