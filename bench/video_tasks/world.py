"""The shapes world written down as StreamingBench is: video files, and an annotation file with options and moments."""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

from penstock.models.vision.tower import VLM
from penstock.worlds.shapes import Question, Shapes

FOLDER = Path("runs/bench/shapes")
VIDEOS, SECONDS, RATE, SIDE = 4, 90.0, 4.0, 96


def clock(t: float) -> str:
    """HH:MM:SS, of the second that has begun."""
    whole = math.ceil(t)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def options(question: Question, others: list[str], rng: random.Random) -> tuple[list[str], str]:
    """Four options, and the letter of the right one; the wrong ones are answers to questions of the same kind."""
    right = question.answer.strip()
    wrong = [answer for answer in dict.fromkeys(others) if answer != right]
    shown = [right, *rng.sample(wrong, min(3, len(wrong)))]
    rng.shuffle(shown)
    return [f"{chr(65 + i)}. {text}" for i, text in enumerate(shown)], chr(65 + shown.index(right))


def entry(question: Question, others: list[str], rng: random.Random) -> dict[str, Any]:
    """One question in the published shape."""
    common = {
        "task_type": question.kind, "question": question.text.strip(), "time_stamp": clock(question.asked_at),
        "required_ability": "working memory",
    }  # fmt: skip
    if question.kind == "forward":
        moment, output = clock(question.evidence_from), question.answer.strip()
        return {**common, "ground_truth_time_stamp": moment, "ground_truth_output": output}
    shown, letter = options(question, others, rng)
    return {**common, "answer": letter, "options": shown}


def export(folder: Path, videos: int = VIDEOS, seconds: float = SECONDS, seed: int = 30_000) -> Path:
    """Write `videos` files and their questions; returns the annotation file.  What is there already stays."""
    path = folder / f"questions_{videos}x{seconds:g}s_{seed}.json"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    asked = [
        [q for q in Shapes(seed + i, rate=RATE).questions(seconds - 1) if q.evidence_from <= seconds - 2]
        for i in range(videos)
    ]  # a moment behind the end of the file never comes
    pools: dict[str, list[str]] = {}
    for question in (question for questions in asked for question in questions):
        pools.setdefault(question.kind, []).append(question.answer.strip())
    rng, entries = random.Random(f"options:{seed}"), []
    for i, questions in enumerate(asked):
        name = f"shapes_{seed + i}.mp4"
        Shapes(seed + i, (SIDE, SIDE), RATE).write(folder / name, seconds)
        found = [entry(question, pools[question.kind], rng) for question in questions]
        entries.append({"questions": found, "video_categories": "shapes", "video_path": f"./videos/{name}"})
    path.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    return path


def prepare(args: argparse.Namespace) -> None:
    """Settings for watching the exported world with the shipped model, which knows its questions and no letters."""
    args.annotations, args.videos, args.bench = [export(FOLDER)], FOLDER, "streamingbench"
    args.model, args.asks = args.model or str(VLM), "plain"
