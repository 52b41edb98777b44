"""penstock watch and penstock reducers, from the command line to the last document."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av", reason="the extra video is not installed")

from penstock.cli import watch as command_watch
from penstock.io.video import where
from penstock.io.video.world import Generated
from tests.io.videos import write
from tests.watch.fake import sight, video

LIMIT = 120  # seconds: an unending process fails instead of hanging


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "clip.mp4", 60)


@pytest.fixture
def watch(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command, on the fake model."""
    monkeypatch.setattr(command_watch, "open_sight", lambda *_, **__: sight())
    return lambda *arguments: command("watch", *arguments)


def test_json_is_events_and_a_summary(watch: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    (tmp_path / "c.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nHello.\n")
    ran = watch(
        clip, "--json", "--ask", "What is there?@2.5", "--ask", "And at 9 s?@4", "--ask", "x@77", "--max-new", "2",
        "--reduce", "timechat:by=pixel,threshold=0.02", "--captions", tmp_path / "c.srt", "--tell-me-when", "it ends",
        "--trigger", "every:seconds=2",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    *events, last = ran.documents
    assert {"t", "kind", "text", "question"} <= set.intersection(*map(set, events))
    answers = [e for e in events if e["kind"] == "answer"]
    assert [(e["t"], e["question"]) for e in answers] == [(2.5, "What is there?"), (4.0, "And at 9 s?"), (5.5, "x")]
    assert answers[1]["text"].startswith("not seen yet")
    assert answers[2]["text"].startswith("not seen: the stream ended at 5.5 s")
    assert events[-1]["kind"] == "frame_stats"
    assert (last["frames"], last["seconds"], last["answers"], last["ended"]) == (12, 5.5, 3, "source")
    assert last["tokens_kept"] + last["tokens_dropped"] == 48
    assert 0 < last["memory_bytes"]["peak"] <= last["memory_bytes"]["budget"]
    assert {"fps", "lag_ms", "rss_bytes"} <= last.keys()


def test_people_read_what_was_said(watch: Callable[..., Any], clip: Path) -> None:
    ran = watch(clip, "--ask", "What is at 99 s?@3", "--frames", "8")
    assert ran.code == 0
    assert ran.out.startswith("[00:03.0] > What is at 99 s? -> not seen yet")
    assert "8 of 3.5 s" in ran.out


def test_an_answer_that_the_monitor_cuts_is_an_event_and_the_session_lives_on(
    watch: Callable[..., Any], clip: Path
) -> None:
    arguments = [clip, "--json", "--ask", "What?@2", "--ask", "And now?@3", "--max-new", "24"]
    free, cut = watch(*arguments), watch(*arguments, "--monitor", "guard:threshold=0,need=2,of=2")
    assert (cut.code, cut.err) == (0, "")
    before, after = ([e for e in ran.documents if e.get("kind") == "answer"] for ran in (free, cut))
    assert [e.get("cut") for e in before] == [None, None]
    assert [e.get("cut") for e in after] == ["monitor", "monitor"]
    assert before[0]["text"].startswith(after[0]["text"])
    assert len(after[0]["text"]) < len(before[0]["text"])
    assert (cut.last["frames"], cut.last["answers"], cut.last["ended"]) == (12, 2, "source")
    people = watch(*arguments[:1], "--ask", "What?@2", "--monitor", "guard:threshold=0")
    assert "(cut by the monitor)" in people.out


def test_the_world_ends_by_itself(watch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, "_world", lambda *_: Generated(video(10**6), "the shapes world", rate=2.0))
    monkeypatch.setattr(command_watch, "WORLD_SECONDS", 20.0)
    assert watch("--json").last["frames"] == 40
    assert watch("--json", "--seconds", "3").last["frames"] == 6
    assert watch("--json", "--frames", "5").last["frames"] == 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no.mp4"], "there is no video"),
        (["--ask", "x@y"], "TEXT@SECONDS"),
        (["--port", "70000"], "from 0 to 65535"),
        (["--speech", "0"], "tokens per second"),
        (["--rate", "fast"], "--rate cannot be"),
        (["--rate", "0"], "--rate cannot be"),
        (["--reduce", "timechatt"], "unknown reducer"),
        (["--reduce", "stc:keep=x"], "whole number"),
        (["--trigger", "sometimes"], "unknown trigger"),
        (["--tell-me-when", " "], "cannot be empty"),
        (["--monitor", "gard"], "unknown monitor 'gard'"),
        (["--monitor", "guard:need=3"], "3 of the last 2 scores"),
        (["--monitor", "guard:threshold=x"], "give a number"),
        (["--seconds", "-1"], "--seconds"),
        (["--frames", "0"], "--frames"),
        (["--memory", "nothing"], "unknown memory"),
        (["--captions", "no.vtt"], "captions"),
        (["world:nothing"], "unknown world"),
    ],
)
def test_mistakes_are_one_sentence(command: Callable[..., Any], arguments: list[str], says: str) -> None:
    ran = command("watch", *arguments)
    assert ran.code == 2
    assert says in ran.err
    assert ran.err.count("\n") == 1


def test_reducers_are_listed(command: Callable[..., Any]) -> None:
    listed = command("reducers", "--json").last
    assert {"timechat", "stc", "curvestream"} <= {part["name"] for part in listed["reducers"]}
    assert {"silence", "change"} <= {part["name"] for part in listed["triggers"]}
    assert {part["name"] for part in listed["monitors"]} == {"guard"}
    assert "arXiv:2504.17343" in command("reducers").out


def test_ctrl_c_ends_a_pipe_with_the_summary(tmp_path: Path) -> None:
    """A video arrives on standard input and goes on; what was read is summed up, what was not asked is said."""
    data = write(tmp_path / "v.ts", 100, kind="mpegts").read_bytes()
    program = (
        "import sys; from penstock.cli import watch, main; from tests.watch.fake import sight; "
        "watch.open_sight = lambda *_, **__: sight(); sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "watch", "-", "--json", "--ask", "x@99"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(data)
        process.stdin.flush()
        while json.loads(process.stdout.readline())["frames"] == 0:
            pass
        process.send_signal(signal.SIGINT)
        rest = [json.loads(line) for line in process.stdout.read().splitlines()]
        process.wait(LIMIT)
    assert process.returncode == 0
    assert rest[-1]["ended"] == "interrupted"
    assert any(e.get("kind") == "answer" and "interrupted" in e["text"] for e in rest)
