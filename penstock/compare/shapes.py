"""The tiny video-language model on the shapes world: what it answers, how far back, and what it announces.

    python -m penstock.compare.shapes                       inside its window, by kind of question
    python -m penstock.compare.shapes --memory streaming-llm --memory rekv     by distance of the evidence, in windows
    python -m penstock.compare.shapes --announce            events said in time, and false alarms

The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from penstock.errors import InputError, PenstockError
from penstock.models.load import Model, load
from penstock.models.vision.tower import VLM, Vision
from penstock.session import Session
from penstock.triggers import parse
from penstock.watch.speaking import Requests, request_of
from penstock.worlds.shapes.wording import TELL_ANY
from penstock.worlds.shapes.world import Question, Shapes

INSIDE = ("present", "count", "past", "order")
_TOKENS = 5  # per frame of the tiny model
_ANSWER = 8  # tokens


@dataclass
class Tally:
    """Right answers among those asked."""

    right: int = 0
    asked: int = 0

    def add(self, is_right: bool) -> None:
        self.right += is_right
        self.asked += 1

    @property
    def share(self) -> float | None:
        return self.right / self.asked if self.asked else None

    def __str__(self) -> str:
        return "-" if self.share is None else f"{self.share:.3f} ({self.asked})"


def answer(session: Session, question: Question) -> str:
    """What the model answers, without remembering that it was asked."""
    return "".join(session.reply(question.text, raw=True, remember=False, max_new=_ANSWER))


def opened(model: Model, memory: str, budget: int | None, vision: Vision | None = None) -> Session:
    """A session on the model; its eyes may be shared."""
    return Session(model, memory, budget, path="eager", vision=vision)


def inside(model: Model, streams: int, frames: int = 32, seed: int = 10_000) -> dict[str, Tally]:
    """Accuracy by kind, everything in view: a question of each kind at four moments of each stream."""
    out = {kind: Tally() for kind in INSIDE}
    eyes = Vision(model)
    for i in range(streams):
        world, rng = Shapes(seed + i), random.Random(f"inside:{seed + i}")
        session = opened(model, "dense", None, eyes)
        for number in range(1, frames + 1):
            frame = next(world)
            session.see(frame)
            if number % (frames // 4) == 0:
                for kind in INSIDE:
                    question = world.ask(frame.t, kind, rng)  # type: ignore[arg-type]
                    if question is not None:
                        out[kind].add(answer(session, question) == question.answer)
    return out


def by_distance(
    model: Model, memory: str, budget: int, windows: Sequence[float], streams: int, each: int, seed: int = 20_000
) -> dict[float, Tally]:
    """Accuracy of questions about the past whose evidence is so many windows back; a window is the whole budget."""
    out = {distance: Tally() for distance in windows}
    eyes = Vision(model)
    for i in range(streams):
        world, rng = Shapes(seed + i), random.Random(f"distance:{seed + i}")
        window = budget / _TOKENS / world.rate  # seconds
        session = opened(model, memory, budget, eyes)
        for _ in range(round((max(windows) + 0.6) * window * world.rate)):
            frame = next(world)
            session.see(frame)
        for distance in windows:
            for _ in range(each):
                back = distance * window * rng.uniform(0.95, 1.05)
                question = world.ask(frame.t, "past", rng, back)
                if question is not None:
                    out[distance].add(answer(session, question) == question.answer)
    return out


@dataclass
class Announced:
    """What was said by itself: events, those said within a second, false alarms, minutes watched."""

    events: int = 0
    in_time: int = 0
    false: int = 0
    minutes: float = 0.0

    def add(self, other: Announced) -> None:
        self.events += other.events
        self.in_time += other.in_time
        self.false += other.false
        self.minutes += other.minutes

    @property
    def recall(self) -> float:
        return self.in_time / max(1, self.events)

    @property
    def false_per_minute(self) -> float:
        return self.false / max(1e-9, self.minutes)


def announce(
    model: Model, memory: str, budget: int, frames: int, seed: int = 30_000, trigger: str | None = None
) -> Announced:
    """Ask once to be told what comes, as `penstock watch` does; `trigger`: when to speak (None: as the model says)."""
    eyes, world = Vision(model), Shapes(seed)
    session = opened(model, memory, budget, eyes)
    requests = Requests([request_of(TELL_ANY)], parse(trigger or chosen(eyes)), session)
    said: list[tuple[float, str]] = []
    for _ in range(frames):
        frame = next(world)
        requests.stand()
        session.see(frame)
        said += [(frame.t, item.text) for item in requests.look(frame.t, 1.0)]
    return graded(said, world)


def chosen(eyes: Vision) -> str:
    """When a model that was trained to be silent speaks."""
    if eyes.trigger is None:
        raise InputError(f"{eyes.model.name} was not trained to be silent: choose the tiny video-language model.")
    return eyes.trigger


def graded(said: Sequence[tuple[float, str]], world: Shapes) -> Announced:
    """What was said at which second, against what came; the first second and the last are not counted."""
    events = [e for e in world.timeline.events(1.0, world.now - 1.0) if e.kind == "comes"]
    open_events = {(e.t, str(e.things[0].look)) for e in events}
    out = Announced(len(events), minutes=world.now / 60)
    for t, text in said:
        for part in text.strip().split(" and "):
            match = next((e for e in open_events if e[1] == part and 0 <= t - e[0] <= 1.0), None)
            if match is not None:
                open_events.discard(match)
                out.in_time += 1
            elif 1.5 < t < world.now - 1.0:
                out.false += 1
    return out


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m penstock.compare.shapes", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", default=str(VLM), help="folder of the model")
    parser.add_argument("--memory", action="append", default=[], help="measure this memory by distance")
    parser.add_argument("--budget", type=int, default=160, help="entries of a memory")
    parser.add_argument("--windows", default="0.5,2,5,10", help="distances of the evidence, in budgets")
    parser.add_argument("--streams", type=int, default=40, help="streams of each measurement")
    parser.add_argument("--each", type=int, default=10, help="questions per stream and distance")
    parser.add_argument("--announce", action="store_true", help="measure what the model says by itself")
    parser.add_argument("--frames", type=int, default=600, help="frames of each stream with announcements")
    parser.add_argument("--trigger", action="append", default=[], help="when to speak; default: as the model says")
    parser.add_argument("--seed", type=int, default=30_000, help="of the first stream with announcements")
    options = parser.parse_args(arguments)
    console = Console(width=110)
    try:
        model = load(options.model)
        result = _measure(model, options, console)
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return error.exit_code
    console.print(json.dumps(result), soft_wrap=True)
    return 0


def _measure(model: Model, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if options.announce:
        table = Table("trigger", "events", "said within a second", "false alarms a minute", "minutes")
        for trigger in options.trigger or [chosen(Vision(model))]:
            total = Announced()
            for i in range(options.streams):
                seed = options.seed + i
                total.add(announce(model, "streaming-llm:sinks=8", options.budget, options.frames, seed, trigger))
            shares = f"{total.recall:.3f}", f"{total.false_per_minute:.2f}"
            table.add_row(trigger, str(total.events), *shares, f"{total.minutes:.1f}")
            result[f"announce {trigger}"] = {"recall": total.recall, "false_per_minute": total.false_per_minute}
        console.print(table)
    if options.memory:
        distances = [float(x) for x in options.windows.split(",")]
        table = Table("memory", *[f"{d:g} windows back" for d in distances], "frames/s")
        for memory in options.memory:
            work = partial(by_distance, model, memory, options.budget, distances, options.streams, options.each)
            tallies, seconds = _timed(work)
            frames = options.streams * (max(distances) + 0.6) * options.budget / _TOKENS
            table.add_row(memory, *[str(tallies[d]) for d in distances], f"{frames / seconds:.0f}")
            result[memory] = {f"{d:g}": tallies[d].share for d in distances}
        console.print(table)
    if not options.memory and not options.announce:
        tallies, seconds = _timed(lambda: inside(model, options.streams))
        table = Table("inside the window", "accuracy (questions)")
        for kind, tally in tallies.items():
            table.add_row(kind, str(tally))
        console.print(table)
        result |= {kind: tally.share for kind, tally in tallies.items()} | {"seconds": round(seconds, 1)}
    return result


if __name__ == "__main__":
    sys.exit(main())
