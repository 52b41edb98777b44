"""The shapes world as a stream: frames without end, what happened in them, and questions with known answers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from penstock.core import Frame
from penstock.errors import InputError
from penstock.worlds.shapes import wording
from penstock.worlds.shapes.drawing import draw
from penstock.worlds.shapes.things import COLOURS, MEETING, Event, Thing, Timeline

Kind = Literal["present", "past", "forward", "count", "order"]
KINDS: tuple[Kind, ...] = ("present", "past", "forward", "count", "order")
HORIZON = 1800.0  # seconds of the past that questions and events may be about
_SETTLED = 0.5  # seconds for which a thing must have been in view before it is asked about


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answer.  Times are seconds of the stream.

    What the answer needs is in view from `evidence_from` to `evidence_to`; a forward question is asked before.
    """

    text: str
    answer: str
    asked_at: float
    evidence_from: float
    evidence_to: float
    kind: Kind

    @property
    def back(self) -> float:
        """How many seconds before the question its evidence was last in view; negative for forward questions."""
        return self.asked_at - self.evidence_to


class Shapes:
    """Frames without end: an iterator that is a function of the seed.

    `size` is height and width in pixels, `rate` frames per second, `pace` the mean seconds between two new things,
    `noise` the standard deviation of the grain (of 255).
    """

    def __init__(
        self, seed: int = 0, size: tuple[int, int] = (96, 96), rate: float = 2.0, *, pace: float = 2.0,
        noise: float = 3.0,
    ) -> None:  # fmt: skip
        if min(size) < 16 or max(size) > 8192:
            raise InputError(f"the shapes world cannot be drawn at {size[0]}x{size[1]}: give sides of 16 to 8192.")
        if not 0 < rate <= 1000:
            raise InputError(f"the shapes world cannot run at {rate:g} frames per second: give a rate up to 1000.")
        if not 0.5 <= pace <= 1e4:
            raise InputError(f"a new thing every {pace:g} seconds is not possible: give a pace of 0.5 or more.")
        self.seed, self.size, self.rate, self.noise = seed, size, rate, noise
        self.timeline = Timeline(seed, pace=pace, keep=HORIZON)
        self.index = 0  # of the next frame

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        t = self.index / self.rate
        frame = Frame(draw(self.timeline, t, self.size, self.noise), t, self.index)
        self.index += 1
        return frame

    @property
    def now(self) -> float:
        """Seconds of the newest frame; 0 before the first."""
        return max(0, self.index - 1) / self.rate

    @property
    def events(self) -> list[Event]:
        """What happened up to the newest frame, within the horizon."""
        return self.timeline.events(max(0.0, self.now - HORIZON), self.now + 1e-9) if self.index else []

    # -- questions ----------------------------------------------------------------------------------------------

    def questions(self, upto: float, every: float = 5.0) -> list[Question]:
        """Questions asked every so many seconds until second `upto`, of all kinds in turn; a function of the seed."""
        out = []
        for i in range(1, int(upto / every) + 1):
            rng = random.Random(f"shapes questions:{self.seed}:{i}:{every}")
            found = self.ask(i * every, KINDS[i % len(KINDS)], rng)
            if found is not None:
                out.append(found)
        return out

    def ask(self, t: float, kind: Kind, rng: random.Random, back: float | None = None) -> Question | None:
        """A question at second t; `back`: about how many seconds ago its evidence was (past questions only).

        None if the world has nothing of that kind there.
        """
        t = round(t * self.rate) / self.rate  # at a frame
        now = self.timeline.at(t)
        if kind == "present":
            place = rng.choice([thing.place for thing in now] + [rng.randrange(4)])
            there = [thing for thing in now if thing.place == place]
            answer = wording.name(there[0].look) if there else wording.NOTHING
            return Question(wording.what_at(place), answer, t, t, t, kind)
        if kind == "count":
            return Question(wording.how_many(), wording.NUMBERS[len(now)], t, t, t, kind)
        if kind == "forward":
            return self._forward(t, rng)
        known = [x for x in self.timeline.things if x.comes + _SETTLED < t and x.comes >= max(0.0, t - HORIZON)]
        if back is not None:
            known = sorted(known, key=lambda x: abs(t - x.goes - back))[:2] if kind == "past" else known
        if not known:
            return None
        thing = rng.choice(known)
        if kind == "order":
            return self._order(t, thing, known, rng)
        return self._past(t, thing, known, rng)

    def _forward(self, t: float, rng: random.Random) -> Question | None:
        self.timeline.until(t + 30)
        coming = [thing for thing in self.timeline.things if t + 1 < thing.comes < t + 20]
        if not coming:
            return None
        if rng.random() < 0.25:
            meeting = [e for e in self.timeline.events(t + 0.5, t + 20) if e.kind == "meet"]
            if meeting:
                at = meeting[0].t
                return Question(wording.TELL_MEET, wording.THEY_MEET, t, at, at + MEETING / 2, "forward")
        thing = rng.choice(coming)
        return Question(
            wording.tell_when(thing.look), wording.name(thing.look), t, thing.comes, thing.goes, "forward"
        )  # fmt: skip

    @staticmethod
    def _order(t: float, thing: Thing, known: list[Thing], rng: random.Random) -> Question | None:
        others = [other for other in known if 1.0 < abs(other.comes - thing.comes) < 30.0]
        if not others:
            return None
        other = rng.choice(others)
        newer = max(thing, other, key=lambda x: x.comes)
        first = min(thing.comes, other.comes)
        text = wording.later(thing.look, other.look)
        return Question(text, wording.name(newer.look), t, first, min(t, max(thing.goes, other.goes)), "order")

    @staticmethod
    def _past(t: float, thing: Thing, known: list[Thing], rng: random.Random) -> Question:
        key = (thing.look.colour, thing.look.shape, thing.place)
        alone = sum((x.look.colour, x.look.shape, x.place) == key for x in known) == 1
        seen = thing.comes, min(t, thing.goes)
        if alone and rng.random() < 0.4:
            return Question(
                wording.plate_of(thing.look, thing.place), f" {COLOURS[thing.look.plate]}", t, *seen, "past"
            )  # fmt: skip
        return Question(wording.where(thing.look), f" {wording.PLACES[thing.place]}", t, *seen, "past")

    # -- files --------------------------------------------------------------------------------------------------

    def write(self, path: str | Path, seconds: float, codec: str | None = None) -> int:
        """Write the next `seconds` into a video file (PyAV; the suffix names the container); returns the frames.

        Raises InputError without PyAV, for a codec it does not have, and where the file cannot be written.
        """
        from penstock.worlds.shapes.recording import record

        return record(self, Path(path), seconds, codec)
