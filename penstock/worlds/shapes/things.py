"""What lives in the shapes world and when: a function of the seed, made as far as it is asked for.

Time is continuous, in seconds; frames are taken from it at any rate.  A thing has a look (a shape of one colour on a
plate of another), a place (one of four), a time at which it comes and one at which it goes.  Two things in places side
by side may meet: they approach until their plates touch.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
COLOURS = ("red", "green", "blue", "yellow", "white", "purple", "orange", "cyan")
PLACES = ("northwest", "northeast", "southwest", "southeast")  # row by row
_BESIDE = {(a, b) for a, b in ((0, 1), (2, 3), (0, 2), (1, 3))}

APART = 200  # things that come before a look is used again
MEETING = 2.0  # seconds from setting out to being back; the middle half of it they touch
_FREE = 0.6  # seconds for which a place stays empty


@dataclass(frozen=True, slots=True)
class Look:
    """Indices into SHAPES, COLOURS (of the shape) and COLOURS (of the plate)."""

    shape: int
    colour: int
    plate: int

    def __str__(self) -> str:
        return f"{COLOURS[self.colour]} {SHAPES[self.shape]} on {COLOURS[self.plate]}"


@dataclass(slots=True)
class Thing:
    """One thing, from its coming to its going (seconds)."""

    number: int
    look: Look
    place: int
    comes: float
    goes: float
    phase: float  # of its drifting, in radians
    meets: float = math.inf  # when it sets out to meet `other`
    other: int = -1  # the number of the thing that it meets

    def offset(self, t: float, towards: int | None) -> tuple[float, float]:
        """How far it is from the middle of its place, (down, right), as a share of the place's side."""
        drift = 0.07
        down, right = drift * math.sin(1.3 * t + self.phase), drift * math.cos(0.9 * t + 2 * self.phase)
        if towards is None or not self.meets <= t < self.meets + MEETING:
            return down, right
        part = (t - self.meets) / MEETING
        pull = min(1.0, 4 * part, 4 * (1 - part))
        reach = 0.5 - PLATE / 2  # the plate touches the border of the place
        goal = [0.0, 0.0]
        axis = 1 if self.place // 2 == towards // 2 else 0
        goal[axis] = reach if towards > self.place else -reach
        return down + pull * (goal[0] - down), right + pull * (goal[1] - right)


PLATE = 0.62  # side of a plate as a share of the place's side


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at second `t`: a thing came or went, or two met."""

    t: float
    kind: Literal["comes", "goes", "meet"]
    things: tuple[Thing, ...]

    def __str__(self) -> str:
        return " and ".join(str(thing.look) for thing in self.things) + f" {self.kind}"


@dataclass
class Timeline:
    """The things of one world, in the order in which they come.

    `pace` is the mean number of seconds between two of them.  Only the last `keep` seconds are held in memory; what
    was asked for before is gone (make a new timeline of the same seed to begin again).
    """

    seed: int = 0
    pace: float = 2.0
    most: int = 3  # things in view at once
    keep: float = math.inf
    things: list[Thing] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(f"shapes:{self.seed}")
        self._next = self._random.uniform(0.0, 1.0)
        self._made = 0
        self._recent: deque[Look] = deque(maxlen=APART)

    def until(self, t: float) -> None:
        """Make everything that comes up to t, and one meeting's time more, so that who meets whom is settled."""
        while self._next <= t + 2 * MEETING + 6.0:
            self._come()
        if self.things and self.things[0].goes < t - self.keep:
            self.things = [thing for thing in self.things if thing.goes >= t - self.keep]

    def _come(self) -> None:
        draw, now = self._random, self._next
        self._next = now + draw.uniform(0.4, 1.6) * self.pace
        there = [thing for thing in self.things[-16:] if thing.goes + _FREE > now]
        free = [place for place in range(4) if all(thing.place != place for thing in there)]
        if not free or sum(thing.goes > now for thing in there) >= self.most:
            return
        look = self._look()
        life = draw.uniform(1.6, 5.5)
        thing = Thing(self._made, look, draw.choice(free), now, now + life, draw.uniform(0, 2 * math.pi))
        self._made += 1
        self._recent.append(look)
        for other in there:
            pair = (min(thing.place, other.place), max(thing.place, other.place))
            start = max(now + 0.3, other.comes + 0.3)
            if pair in _BESIDE and other.other < 0 and min(thing.goes, other.goes) - start > MEETING + 0.1:
                thing.meets = other.meets = start
                thing.other, other.other = other.number, thing.number
                break
        self.things.append(thing)

    def _look(self) -> Look:
        draw = self._random
        while True:
            colour, plate = draw.sample(range(len(COLOURS)), 2)
            look = Look(draw.randrange(len(SHAPES)), colour, plate)
            if look not in self._recent:
                return look

    def at(self, t: float) -> list[Thing]:
        """What is in view at second t, by place."""
        self.until(t)
        return sorted((thing for thing in self.things if thing.comes <= t < thing.goes), key=lambda x: x.place)

    def partner(self, thing: Thing) -> Thing | None:
        """Whom it meets."""
        return next((other for other in self.things if other.number == thing.other), None) if thing.other >= 0 else None

    def touches(self, thing: Thing, t: float) -> bool:
        """Whether its plate touches another one."""
        return thing.other >= 0 and thing.meets + MEETING / 4 <= t < thing.meets + 0.75 * MEETING

    def events(self, start: float, end: float) -> list[Event]:
        """What happened in [start, end) seconds, in order."""
        self.until(end)
        out: list[Event] = []
        for thing in self.things:
            out.append(Event(thing.comes, "comes", (thing,)))
            out.append(Event(thing.goes, "goes", (thing,)))
            other = self.partner(thing)
            if other is not None and other.number > thing.number:
                out.append(Event(thing.meets + MEETING / 4, "meet", (thing, other)))
        return sorted((e for e in out if start <= e.t < end), key=lambda e: (e.t, e.kind, e.things[0].number))
