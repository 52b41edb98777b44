"""How well does a model with a bounded memory answer the published benchmarks of streaming video?

    python -m bench.streaming_video --bench streamingbench --annotations questions_real.json --videos VIDEOS --model M
    python -m bench.streaming_video --bench ovobench --annotations ovo_bench_new.json --videos VIDEOS --model M
    python -m bench.streaming_video --bench svbench --annotations FOLDER --videos VIDEOS --model M [--judge TEXTS]
    python -m bench.streaming_video --bench streamgaze --annotations past_scene_recall.json ... --videos VIDEOS
    python -m bench.streaming_video --world shapes      the shipped model on the shapes world, exported in this format

Each video is watched once, from its beginning, in one session: when the second of a question has come, a fork is asked
and thrown away (`--context 60` watches only that many seconds before each question instead, as the authors' scripts of
StreamingBench do).  Nothing later than the question is ever shown.  Every reply is written to `--results` at once; the
same command goes on where it stopped.  Scores come in two forms: by the benchmark's published rule, for comparison with
papers, and by a strict one (bench/video_tasks/rules.py).  The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import penstock
from bench import machine, report
from bench.video_tasks import ovobench, rules, streamgaze, streamingbench, svbench
from bench.video_tasks.exam import Ask, FormatError, Video
from bench.video_tasks.results import Record, Replies, scored, summary
from bench.video_tasks.watching import Pass, Watcher
from penstock.core import Frame
from penstock.errors import PenstockError
from penstock.io.video import open_frames
from penstock.models.load import load
from penstock.models.vision.tower import VLM
from penstock.triggers import parse as parse_trigger
from penstock.watch import Requests

BENCHES = ("streamingbench", "ovobench", "svbench", "streamgaze")


class Watching:
    """A session as a watcher.  `plain` asks the bare question and reads the letter from the reply's words.

    With `trigger`, a model that was trained to be silent: a request stands on a fork that sees the same frames.
    """

    def __init__(self, session: Any, max_new: int, plain: bool, trigger: str | None = None) -> None:
        self.session, self._max_new, self._plain, self._trigger = session, max_new, plain, trigger
        self._standing: dict[int, tuple[Any, Requests, list[str]]] = {}

    def see(self, frame: Frame) -> None:
        self.session.see(frame)
        for fork, requests, said in self._standing.values():
            requests.stand()  # again, when the memory has lost it
            fork.see(frame)
            said += [one.text for one in requests.look(frame.t, 1.0)]

    def stand(self, number: int, request: str) -> bool:
        """Put a request to a fork."""
        if self._trigger is None or not self._plain:
            return False
        fork = self.session.fork()
        requests = Requests([request], parse_trigger(self._trigger), fork)
        requests.stand()
        self._standing[number] = (fork, requests, [])
        return True

    def said(self, number: int) -> str:
        """What was said since this was asked last."""
        said = self._standing[number][2]
        text = " and ".join(said)
        said.clear()
        return text

    def end(self, number: int) -> None:
        """Nobody listens any more."""
        fork, _, _ = self._standing.pop(number)
        fork.runner.close()

    def answer(self, ask: Ask) -> str:
        text = f"\n{ask.plain}" if self._plain else ask.prompt  # a line of its own, as such a model was trained
        reply = "".join(self.session.reply(text, raw=self._plain, remember=ask.history, max_new=self._max_new)).strip()
        named = rules.letter(reply, ask.options) if self._plain and ask.options else None
        return reply if named is None else f"{named}. {reply}"


def read(bench: str, paths: list[Path], gaze: bool) -> list[Video]:
    """The videos of all annotation files.

    Raises:
        FormatError: a file is missing, is no JSON, or has another shape.
    """
    found: list[Video] = []
    for given in paths:
        for path in sorted(given.glob("*.json")) if given.is_dir() else [given]:
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise FormatError(f"cannot read {path} as JSON: {error}") from error
            try:
                if bench == "streamingbench":
                    found += streamingbench.read(data)
                elif bench == "ovobench":
                    found += ovobench.read(data)
                elif bench == "svbench":
                    found += svbench.read(data, path.stem)
                else:
                    found += streamgaze.read(data, path.stem, gaze)
            except FormatError as error:
                raise FormatError(f"{path}: {error}") from error
    if not found:
        raise FormatError(f"no videos in {', '.join(map(str, paths))}: give annotation files with --annotations")
    merged: dict[str, list[Any]] = {}
    for video in found:  # one pass per video, whatever file its questions are in
        merged.setdefault(video.path, []).extend(video.tests)
    return [Video(path, tuple(tests)) for path, tests in merged.items()]


def found_at(folder: Path, name: str) -> Path | None:
    """The file of a video: as named, or by its last part anywhere directly below the folder."""
    for candidate in (folder / name, folder / Path(name).name):
        if candidate.is_file():
            return candidate
    return None


def frames(path: Path, rate: float, start: float = 0.0) -> Iterator[Frame]:
    """Frames of a file at `rate` per second from second `start` on; notices are left out."""
    source = open_frames(str(path), rate=rate)
    try:
        for item in source.frames():
            if isinstance(item, Frame) and item.t >= start:
                yield item
    finally:
        source.close()


def watch(
    video: Video, path: Path, make: Callable[[], Watcher], record: Record, rate: float, context: float | None
) -> None:
    """Answer what has no answer yet; each test is recorded when it is done."""
    todo = record.missing(video)

    def passed(indices: list[int], start: float) -> None:
        one = Pass(
            make(), [video.tests[i] for i in indices], lambda k: record.add(video.path, indices[k], one.exchanges[k])
        )
        one.watch(frames(path, rate, start))

    if context is None:
        passed(todo, 0.0)
        return
    for index in todo:
        first = next(video.tests[index].script())
        passed([index], max(0.0, first.at - context))


def shown(document: dict[str, Any], console: Console) -> None:
    """Tables for people."""
    table = Table(title=document["bench"])
    for name in ("task", "tests", "strict", "published"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for row in document["tasks"]:
        table.add_row(row["task"], str(row["n"]), *(_percent(row[rule]) for rule in ("strict", "published")))
    for name, text in (("of_tests", "all tests"), ("of_tasks", "mean of tasks"), ("of_groups", "mean of groups")):
        table.add_row(text, "", *(_percent(document["totals"][rule][name]) for rule in ("strict", "published")))
    console.print(table)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Watch all videos that are there; returns the document."""
    console = Console(stderr=args.json)
    videos = read(args.bench, args.annotations, args.gaze)[: args.limit]
    there = [(video, path) for video in videos if (path := found_at(args.videos, video.path))]
    if not there:
        raise FormatError(
            f"none of the {len(videos)} videos is in {args.videos}: the first would be {Path(videos[0].path).name}"
        )
    settings = {
        name: str(getattr(args, name))
        for name in ("bench", "model", "memory", "budget", "fps", "context", "asks", "max_new")
    }
    model = load(args.model or VLM)
    settings["weights"] = model.fingerprint  # answers of other weights are no part of this run
    record = Record(args.results, settings)
    begun = time.perf_counter()

    def make() -> Watcher:
        session = penstock.open(model, args.memory, args.budget, path="eager")
        return Watching(session, args.max_new, args.asks == "plain", session.seer.eyes().trigger)

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    with bar as progress:
        task = progress.add_task("videos", total=len(there))
        for video, path in there:
            progress.update(task, description=Path(video.path).name)
            if record.missing(video):
                watch(video, path, make, record, args.fps, args.context)
            progress.advance(task)
    document = {
        "bench": args.bench, "settings": settings, "videos": len(there), "videos_missing": len(videos) - len(there),
        "seconds": round(time.perf_counter() - begun, 1), **summary(scored([v for v, _ in there], record.replies)),
        "machine": machine.record(),
    }  # fmt: skip
    if args.bench == "svbench":
        document |= chains([video for video, _ in there], record.replies, args)
    shown(document, console)
    return document


def chains(videos: list[Video], replies: Replies, args: argparse.Namespace) -> dict[str, Any]:
    """Write the answers as the authors' scripts read them; parse a judge's texts if they are given."""
    folder = args.results.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for video in videos:
        answered = [
            test.document(replies.get((video.path, index), []))
            for index, test in enumerate(video.tests)
            if isinstance(test, svbench.Chain)
        ]
        (folder / f"{Path(video.path).stem}.json").write_text(json.dumps(answered, indent=1), encoding="utf-8")
    out: dict[str, Any] = {"answers": str(folder)}
    if args.judge is not None:
        texts = [path.read_text(encoding="utf-8") for path in sorted(args.judge.glob("*.txt"))]
        if not texts:
            raise FormatError(f"no *.txt in {args.judge}: write a judge's text for each chain there")
        out["judged"] = svbench.judged(texts)
    return out


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.streaming_video", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    add = parser.add_argument
    add("--bench", choices=BENCHES, default="streamingbench")
    add("--annotations", type=Path, nargs="+", default=[], help="annotation files, or folders of them")
    add("--videos", type=Path, default=Path("videos"), help="folder of the videos")
    add("--world", choices=("shapes",), help="export this world in StreamingBench's format and watch that")
    add("--model", help="hub name or folder; without it, the shipped video-language model")
    add("--memory", default="streaming-llm")
    add("--budget", default=None)
    add("--fps", type=float, default=1.0, help="frames per second that the model sees")
    add("--context", type=float, help="seconds before a question that are watched; without it, all from the beginning")
    add("--asks", choices=("prompt", "plain"), default="prompt", help="the benchmark's prompt, or the bare question")
    add("--gaze", action="store_true", help="StreamGaze: the videos in which gaze is drawn")
    add("--max-new", type=int, default=32, dest="max_new", help="tokens of an answer at most")
    add("--limit", type=int, help="only so many videos")
    add("--judge", type=Path, help="SVBench: folder of a judge's texts")
    add("--results", type=Path, default=Path("runs/bench/streaming_video.jsonl"))
    add("--json", action="store_true", help="only JSON on stdout")
    return parser


def main() -> int:
    args = options().parse_args()
    try:
        if args.world:
            from bench.video_tasks.world import prepare

            prepare(args)
        document = run(args)
    except (FormatError, PenstockError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report.finish(document, None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
