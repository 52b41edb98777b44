"""How does a model watch: for an hour, at which rate, with how many tokens dropped, and how soon does it answer?

    hour     7,200 frames of the shapes world (simulated clock, 2 frames/s): resident set and tokens in the memory
    rate     a 640x360 file, every frame from the file to the memory: frames per second
    drop     differential token drop: tokens dropped on a real surveillance clip and on shapes, the accuracy kept there
    first    time to the first token of an answer with the video in memory, against encoding the clip again

    python -m bench.video                        all four; about ten minutes
    python -m bench.video --only rate,first      some of them

`--model` is any model that sees; default: the tiny one shipped.  `rate` and `drop` use the clips in
`../shared/data/video` where they exist; `rate` otherwise writes a file of the shapes world.  The last line is one JSON
document.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench import machine, report
from penstock.core import Clock, Frame, SimulatedClock
from penstock.io.frames import FrameSource
from penstock.io.video import Generated, open_frames
from penstock.reducers import Chain, parse
from penstock.triggers import parse as parse_trigger
from penstock.watch import Agenda, Event, Limits, Pipeline, Question, Requests, Watch
from penstock.watch.opening import Sight, open_sight
from penstock.watch.spans import MOST
from penstock.watch.speaking import aside
from penstock.worlds.shapes import Shapes

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "data" / "video" / "intel"
RATE_CLIP, DROP_CLIP = CLIPS / "bottle-detection.mp4", CLIPS / "one-by-one-person-detection.mp4"
GOALS = {"fps": 24.0, "dropped": 0.70, "accuracy_kept": 0.98, "first": 10.0}


def watching(
    source: FrameSource, sight: Sight, reduce: Sequence[str] = (), asks: Sequence[Question] = (), **limits: Any
) -> tuple[Watch, list[Event]]:
    """A watcher that nobody looks at."""
    events: list[Event] = []
    clock: Clock = SimulatedClock()
    pipeline = Pipeline(source, sight.eyes, Chain([parse(text) for text in reduce]), clock)
    requests = Requests((), parse_trigger("every"), sight.reader)
    watch = Watch(
        pipeline, sight.eyes, sight.reader, requests, Agenda(list(asks)), limits=Limits(**limits), emit=events.append
    )
    return watch, events


def shapes(seed: int = 0, rate: float = 2.0, size: tuple[int, int] = (96, 96)) -> Generated:
    return Generated(Shapes(seed=seed, rate=rate, size=size), f"shapes {seed}", rate=rate)


def hour(model: str | None, memory: str, budget: str | None, frames: int) -> dict[str, Any]:
    """Resident set against frames, after a warm-up of a tenth."""
    sight = open_sight(model, memory, budget)
    watch, _ = watching(shapes(), sight, frames=frames)
    process, samples = psutil.Process(), list[tuple[int, int, int]]()
    every, most = max(1, frames // 40), 0
    for _ in watch.run():
        held = max(sum(len(view.seen) for view in views) for views in _by_layer(sight))
        most = max(most, held)
        if watch.counts.frames % every == 0 and (not samples or samples[-1][0] != watch.counts.frames):
            samples.append((watch.counts.frames, process.memory_info().rss, watch.reader.memory.nbytes))
    later = [(n, rss) for n, rss, _ in samples if n >= frames // 4]
    slope = float(np.polyfit([n for n, _ in later], [rss for _, rss in later], 1)[0]) if len(later) > 2 else 0.0
    full = [rss for n, rss, _ in samples if n >= MOST]  # the seconds that are noted, and the world's past, are full
    table = [
        [f"{n:,}", f"{rss / 1e6:.1f} MB", f"{stored / 1e6:.3f} MB"]
        for n, rss, stored in samples[:: len(samples) // 8 or 1]
    ]
    print(report.table(["frames", "resident", "memory"], table))
    facts = {
        "frames": watch.counts.frames, "stream_seconds": watch.t, "wall_seconds": watch.wall, "fps": watch.fps,
        "visual_tokens_read": watch.counts.tokens_kept, "entries_most": most, "budget_entries": sight.budget,
        "memory_bytes_peak": watch.counts.peak_bytes, "memory_bytes_budget": watch.reader.memory.budget_bytes,
        "rss_slope_bytes_per_1000_frames": 1000 * slope, "rss_growth_bytes": later[-1][1] - later[0][1] if later else 0,
        "rss_growth_bytes_tables_full": full[-1] - full[0] if full else None,
        "longest_queue": max(watch.pipeline._raw.longest, watch.pipeline._encoded.longest),
    }  # fmt: skip
    print(
        f"{facts['frames']:,} frames in {facts['wall_seconds']:.0f} s; at most {most} of {sight.budget} entries; "
        f"resident set {facts['rss_growth_bytes'] / 1e6:+.2f} MB over the last three quarters, "
        f"{facts['rss_slope_bytes_per_1000_frames'] / 1e3:+.1f} kB per 1,000 frames"
    )
    if full:
        print(f"resident set {(full[-1] - full[0]) / 1e3:+.1f} kB since frame {MOST:,}, when all tables are full")
    return facts


def _by_layer(sight: Sight) -> Iterator[list[Any]]:
    views = sight.reader.memory.view()
    for layer in {layer for view in views for layer in view.layers}:
        yield [view for view in views if layer in view.layers]


def rate(model: str | None, memory: str, budget: str | None, rounds: int) -> dict[str, Any]:
    """Every frame of a 640x360 file, decoded, encoded and read."""
    with tempfile.TemporaryDirectory() as folder:
        path = RATE_CLIP
        if not path.is_file():
            path = Path(folder) / "shapes.mp4"
            Shapes(seed=1, size=(360, 640), rate=30.0).write(path, 40)
        sight = open_sight(model, memory, budget, rate=30.0)
        runs = []
        for decoders in [1] * rounds + [2]:
            source = open_frames(str(path), workers=decoders, longest=None if sight.side is None else 2 * sight.side)
            watch, _ = watching(source, sight)
            for _ in watch.run():
                pass
            busy = watch.pipeline.busy
            per = {
                name: 1000 * value / watch.counts.frames for name, value in {**busy, "read": watch.counts.busy}.items()
            }
            runs.append({"decoders": decoders, "frames": watch.counts.frames, "fps": watch.fps, "ms_per_frame": per})
        print(
            report.table(
                ["decoders", "frames", "frames/s", "decode ms", "encode ms", "read ms"],
                [
                    [
                        str(r["decoders"]),
                        str(r["frames"]),
                        f"{r['fps']:.1f}",
                        *(f"{v:.1f}" for v in r["ms_per_frame"].values()),
                    ]
                    for r in runs
                ],
            )
        )
        median = statistics.median(r["fps"] for r in runs[:rounds])
        print(f"{path.name}: {median:.1f} frames/s (goal {GOALS['fps']:.0f}); the three overlap, ms are of each alone")
        return {"file": path.name, "fps": median, "runs": runs}


def drop(
    model: str | None,
    memory: str,
    budget: str | None,
    seconds: float,
    reducers: Sequence[str],
    seed: int,
    **limits: bool,
) -> dict[str, Any]:
    """Tokens dropped, and what it costs on questions with known answers."""
    rows, base = [], 0.0
    questions = [q for q in Shapes(seed=seed).questions(seconds, every=2.0) if q.kind != "forward"]
    kinds = {q.text.strip() + f"@{q.asked_at}": q.kind for q in questions}
    for reduce in ("none", *reducers):
        chain = [] if reduce == "none" else [reduce]
        sight = open_sight(model, memory, budget)
        asks = [Question(q.asked_at, i, q.text) for i, q in enumerate(questions)]
        watch, events = watching(shapes(seed), sight, chain, asks, seconds=seconds, **limits)
        for _ in watch.run():
            pass
        right = [
            e.text == q.answer.strip()
            for e, q in zip((e for e in events if e.kind == "answer"), questions, strict=True)
        ]
        here = [r for r, q in zip(right, questions, strict=True) if q.kind in ("present", "count")]
        row = {
            "reduce": reduce, "accuracy": statistics.mean(right), "accuracy_now": statistics.mean(here),
            "dropped_on_shapes": _dropped(watch), "dropped_on_clip": None,
        }  # fmt: skip
        if DROP_CLIP.is_file() and chain:
            clip, _ = watching(
                open_frames(str(DROP_CLIP), rate=2.0, longest=None if sight.side is None else 2 * sight.side),
                open_sight(model, memory, budget), chain,
            )  # fmt: skip
            for _ in clip.run():
                pass
            row["dropped_on_clip"] = _dropped(clip)
        base = row["accuracy"] if reduce == "none" else base
        row["accuracy_kept"] = row["accuracy"] / base if base else 0.0
        rows.append(row)
        gc.collect()
    print(
        report.table(
            ["reducer", "dropped on the clip", "dropped on shapes", "accuracy", "about now", "kept"],
            [
                [
                    r["reduce"], "-" if r["dropped_on_clip"] is None else f"{100 * r['dropped_on_clip']:.1f} %",
                    f"{100 * r['dropped_on_shapes']:.1f} %", f"{100 * r['accuracy']:.1f} %",
                    f"{100 * r['accuracy_now']:.1f} %", f"{100 * r['accuracy_kept']:.1f} %",
                ]
                for r in rows
            ],
        )
    )  # fmt: skip
    print(f"{len(questions)} questions of {len(set(kinds.values()))} kinds; clip: {DROP_CLIP.name} at 2 frames/s")
    return {"questions": len(questions), "rows": rows}


def _dropped(watch: Watch) -> float:
    seen = watch.counts.tokens_kept + watch.counts.tokens_dropped
    return watch.counts.tokens_dropped / seen if seen else 0.0


def first(model: str | None, memory: str, budget: str | None, seconds: float, rounds: int) -> dict[str, Any]:
    """Seconds to the first token of an answer: asked of the memory, and after encoding and reading the clip again."""
    frames: list[Frame] = list(islice(Shapes(seed=3), int(2 * seconds)))
    question = "\nHow many things are there?"

    def answer(sight: Sight) -> float:
        began = time.perf_counter()
        with aside(sight.reader, len(question) + 8):
            pieces = sight.reader.reply(question, max_new=4)
            next(pieces, None)
            took = time.perf_counter() - began
            pieces.close()  # type: ignore[attr-defined]
        return took

    held = open_sight(model, memory, budget)
    for _ in watching(Generated(frames, "clip", is_endless=False), held)[0].run():
        pass
    answer(held)
    kept, again = [], []
    for _ in range(rounds):
        kept.append(answer(held))
        began = time.perf_counter()
        fresh = again_on(held, memory, budget)
        for _ in watching(Generated(frames, "clip", is_endless=False), fresh)[0].run():
            pass
        answer(fresh)
        again.append(time.perf_counter() - began)
    facts = {
        "clip_seconds": seconds, "frames": len(frames), "held_ms": 1000 * statistics.median(kept),
        "again_ms": 1000 * statistics.median(again), "rounds": rounds,
    }  # fmt: skip
    facts["times"] = facts["again_ms"] / facts["held_ms"]
    print(
        f"{seconds:.0f} s of video ({len(frames)} frames): first token after {facts['held_ms']:.0f} ms from memory, "
        f"{facts['again_ms']:.0f} ms when the clip is encoded again: {facts['times']:.0f} times "
        f"(goal {GOALS['first']:.0f})"
    )
    return facts


def again_on(sight: Sight, memory: str, budget: str | None) -> Sight:
    """A fresh session on the same loaded model."""
    from penstock.models.vision import Vision
    from penstock.session import Session
    from penstock.watch.model_eyes import ModelEyes

    loaded = sight.reader.model
    vision = Vision(loaded)
    session = Session(loaded, memory, budget, vision=vision)
    return Sight(ModelEyes(vision, session), session, sight.name, session.budget)


REDUCERS = (
    *(f"timechat:threshold={value},against=kept" for value in (0.5, 0.8, 0.9, 0.95, 0.98)),
    "timechat:threshold=0.9",
    "timechat:threshold=0.98,against=kept,unit=frame",
    "timechat:by=pixel,threshold=0.01,against=kept",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="hour,rate,drop,first")
    parser.add_argument("--model")
    parser.add_argument("--memory", default="streaming-llm")
    parser.add_argument("--budget")
    parser.add_argument("--frames", type=int, default=7200, help="of the hour")
    parser.add_argument("--seconds", type=float, default=600.0, help="of the questions of drop")
    parser.add_argument("--clip", type=float, default=60.0, help="seconds of the clip of first")
    parser.add_argument("--seed", type=int, default=5, help="of the shapes of drop")
    parser.add_argument("--apart", action="store_true", help="ask the questions of drop of snapshots")
    parser.add_argument("--as-left", action="store_true", help="drop: ask of the newest frame as it was left")
    parser.add_argument("--reduce", action="append", help="a reducer of drop; may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    chosen, busy = given.only.split(","), machine.busy_percent()
    common = (given.model, given.memory, given.budget)
    result: dict[str, Any] = {"bench": "video", "machine": machine.record(), "busy_percent": busy}
    print("How does a model watch: for an hour, at which rate, with how many tokens dropped, how soon does it answer?")
    print(
        f"{given.model or 'the tiny video-language model'}, memory {given.memory}, busy {busy:.0f} % before the start"
    )
    runs = {
        "hour": lambda: hour(*common, given.frames),
        "rate": lambda: rate(*common, given.rounds),
        "drop": lambda: drop(
            *common, given.seconds, given.reduce or REDUCERS, given.seed, apart=given.apart, as_left=given.as_left
        ),
        "first": lambda: first(*common, given.clip, given.rounds),
    }
    with machine.quiet():
        for name in chosen:
            print(f"\n{name}")
            result[name] = runs[name]()
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
