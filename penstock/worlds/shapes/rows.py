"""Training rows: what the model sees of the shapes world through a bounded memory, with questions in between.

A row is either one contiguous piece of the stream, or scattered: its beginning, far blocks of some frames (cut
anywhere, as blocks of tokens are) in stream order, and the newest frames.  Targets stand apart from inputs: after an
answer, and after a frame about which nothing is to be said, the model should say that it has no more to say (EOS),
and EOS never enters the stream.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from penstock.worlds.shapes import wording
from penstock.worlds.shapes.drawing import draw
from penstock.worlds.shapes.perceive import labels_at
from penstock.worlds.shapes.things import COLOURS, MEETING, SHAPES, Look, Thing, Timeline
from penstock.worlds.shapes.tokens import BOS_ID, EOS_ID, FRAME_ID, PICTURE_ID, encode

SIDE, PER_FRAME = 96, 4
NOW = {"what": 14, "many": 14, "here": 6, "meet": 4}  # asked right behind a frame: shares of the questions
PAST = {"where": 26, "plate": 14, "later": 26}
SILENCE, STOP_WEIGHT = 0.05, 0.15
SILENCE_ASKED = {False: 0.4, True: 1.0}  # under a request; in the end, with pictures, it counts as much as speech


class Batch(NamedTuple):
    """Tokens, targets and weights [B, T]; `picked` [n, 2] (picture, token of it) for each PICTURE; kinds [B, T]."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    images: Tensor | None  # uint8 [pictures, SIDE, SIDE, 3]
    labels: Tensor  # [pictures, 4, 5], as perceive.labels_at
    picked: Tensor
    kinds: Tensor


KINDS = ("silence", "announce", "present", "count", "where", "plate", "order", "here", "absent")


@dataclass
class Row:
    """One row while it is written."""

    length: int
    tokens: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    labels: list[NDArray[np.int64]] = field(default_factory=list)
    picked: list[tuple[int, int]] = field(default_factory=list)

    def put(self, ids: list[int]) -> None:
        """Inputs without targets."""
        for token in ids:
            self.tokens.append(token)
            self.targets.append(EOS_ID)
            self.weights.append(0.0)
            self.kinds.append(0)

    def aim(self, target: int, weight: float, kind: str) -> None:
        """What should follow the newest token."""
        self.targets[-1], self.weights[-1], self.kinds[-1] = target, weight, KINDS.index(kind)

    def say(self, ids: list[int], kind: str) -> None:
        """The model says this, then nothing more."""
        for token in ids:
            self.aim(token, 1.0, kind)
            self.put([token])
        self.aim(EOS_ID, STOP_WEIGHT, "silence")

    @property
    def room(self) -> int:
        return self.length - len(self.tokens)


@dataclass
class Seen:
    """What a row has shown so far."""

    things: dict[int, Thing] = field(default_factory=dict)
    now: list[Thing] = field(default_factory=list)
    t: float = 0.0


@dataclass(frozen=True)
class Reduces:
    """What a reducer leaves of the frames of a row: what changed, and a share of the rest, by chance."""

    whole: bool  # frames stay whole or leave nothing, not even their end
    share: float
    again: bool  # before a question the newest frame comes back whole

    @staticmethod
    def drawn(rng: random.Random) -> Reduces:
        return Reduces(rng.random() < 0.5, rng.choice((0.0, 0.1, 0.4)), rng.random() < 0.8)

    def kept(self, labels: NDArray[np.int64], row: Row, rng: random.Random) -> set[int]:
        """The tokens of a frame that stay."""
        every = set(range(PER_FRAME + 1))
        if not row.labels:
            return every
        differs = (labels != row.labels[-1]).any(axis=1)
        if self.whole:
            return every if differs.any() or rng.random() < self.share else set()
        return {k for k in range(PER_FRAME) if differs[k] or rng.random() < self.share} | {PER_FRAME}


class RowMaker:
    """Makes rows; everything is a function of the random state that is passed in."""

    def __init__(self, tokenizer: Tokenizer, length: int, pictures: bool = True, reduced: float = 0.25) -> None:
        self.tokenizer, self.length, self.pictures, self.reduced = tokenizer, length, pictures, reduced
        self._cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = encode(self.tokenizer, text)
        return self._cache[text]

    def make(self, rng: random.Random) -> Row:
        """One row."""
        timeline = Timeline(rng.randrange(1 << 30), pace=rng.choice((1.2, 1.6, 2.0, 2.0)))
        rate = rng.choice((1.0, 2.0, 2.0, 2.0, 2.0, 4.0))
        row, seen = Row(self.length), Seen()
        reducer = Reduces.drawn(rng) if rng.random() < self.reduced else None
        watches = rng.random() < 0.3  # nothing but frames and what is said of them
        frames = self._frames(rng, 0.7 if watches else 0.35) if reducer is None else [(rng.randrange(8), 120)]
        noise, light = rng.uniform(0, 7), rng.uniform(0.92, 1.06)
        times = [(start + i) / rate for start, count in frames for i in range(count)]
        come = [thing for thing in self._all(timeline, times[0], times[-1]) if thing.comes > times[0]]
        request: str | Look | None = None
        if rng.random() < 0.75:
            row.put([BOS_ID])
        asked = rng.choice(("any", "any", "look", "meet") if watches else ("none", "any", "meet", "look", "none"))
        ask_at = 0 if rng.random() < 0.6 else rng.randrange(min(40, len(times)))
        chatty = 0.0 if watches else rng.choice((0.05, 0.15, 0.3, 0.5))
        burst = 20 if watches or rng.random() < 0.4 else rng.randint(60, 150)  # room left for questions about the past
        number, lacks = 0, False  # whether the row lacks some of the newest frame
        for block, (start, count) in enumerate(frames):
            for i in range(count):
                if row.room < burst:
                    break
                if number == ask_at and asked != "none":
                    request = self._request(row, asked, rng, come, (start + i) / rate)
                last = block == len(frames) - 1
                cut_head = rng.randrange(5) if i == 0 and block and rng.random() < 0.6 else 0
                cut_tail = rng.randrange(5) if i == count - 1 and not last and count > 1 and rng.random() < 0.6 else 0
                t = (start + i) / rate
                before = {thing.number for thing in seen.now} if i and not (i == 1 and cut_head) else None
                was_meeting = self._meeting(seen.now, seen.t) if before is not None else None
                keep = set(range(PER_FRAME + 1)[cut_head : PER_FRAME + 1 - cut_tail])
                if reducer is not None:
                    keep = reducer.kept(labels_at(timeline, t), row, rng)
                    lacks = len(keep) <= PER_FRAME
                if keep:
                    self._show(row, timeline, t, seen, keep, noise, light)
                if cut_tail == 0 and keep:
                    request = self._frame_end(row, seen, request, before, was_meeting)
                if cut_tail == 0 and rng.random() < chatty:
                    if lacks and reducer is not None and reducer.again:  # whole, as watch/in_view.py brings it back
                        self._show(row, timeline, t, seen, set(range(PER_FRAME + 1)), noise, light)
                    self._ask(row, seen, rng, NOW if rng.random() < 0.65 and not cut_head else PAST)
                number += 1
        while not watches and row.room > 16 and self._ask(row, seen, rng, PAST):
            pass
        row.put([EOS_ID] * row.room)
        return row

    @staticmethod
    def _all(timeline: Timeline, start: float, end: float) -> list[Thing]:
        timeline.until(end)
        return [thing for thing in timeline.things if thing.goes > start and thing.comes < end]

    @staticmethod
    def _frames(rng: random.Random, whole: float) -> list[tuple[int, int]]:
        """Blocks (first frame, frames) of the stream that the row shows; `whole`: how often it is one block."""
        start = rng.randrange(8)
        if rng.random() < whole:
            return [(start, 44)]
        blocks = [(start, rng.randint(1, 3))]
        for _ in range(rng.randint(1, 5)):
            start = sum(blocks[-1]) + rng.randint(2, 30)
            blocks.append((start, rng.randint(2, 7)))
        blocks.append((sum(blocks[-1]) + rng.randint(2, 30), 44))
        return blocks

    def _show(
        self, row: Row, timeline: Timeline, t: float, seen: Seen, keep: set[int], noise: float, light: float
    ) -> None:  # fmt: skip
        """One frame, of which some tokens stay (0 to 3, and 4 for the end of the frame)."""
        if self.pictures:
            image = draw(timeline, t, (SIDE, SIDE))
            if noise > 2:  # grain from a small sheet: cheaper than a new one per pixel
                sheet = np.random.default_rng(int(t * 1000)).normal(0, noise, (SIDE // 2, SIDE // 2, 3))
                image = (image * light + np.kron(sheet, np.ones((2, 2, 1)))).clip(0, 255).astype(np.uint8)
            row.images.append(image)
        row.labels.append(labels_at(timeline, t))
        for k in sorted(keep):
            if k < PER_FRAME:
                row.put([PICTURE_ID])
                row.picked.append((len(row.labels) - 1, k))
            else:
                row.put([FRAME_ID])
        now = timeline.at(t)
        seen.now, seen.t = now, t
        for thing in now:
            if thing.place in keep:
                seen.things.setdefault(thing.number, thing)

    @staticmethod
    def _meeting(now: list[Thing], t: float) -> bool:
        here = {thing.number for thing in now}
        return any(
            thing.other in here and thing.meets + MEETING / 4 <= t < thing.meets + 0.75 * MEETING for thing in now
        )

    def _request(self, row: Row, kind: str, rng: random.Random, come: list[Thing], t: float) -> str | Look | None:
        text: str
        request: str | Look
        if kind == "look":
            later = [thing for thing in come if thing.comes > t]
            look = rng.choice(later[:6]).look if later and rng.random() < 0.75 else self._look(rng)
            text, request = wording.tell_when(look), look
        else:
            text, request = (wording.TELL_ANY if kind == "any" else wording.TELL_MEET), kind
        row.put(self.ids(text))
        row.aim(EOS_ID, STOP_WEIGHT, "silence")
        return request

    @staticmethod
    def _look(rng: random.Random) -> Look:
        colour, plate = rng.sample(range(len(COLOURS)), 2)
        return Look(rng.randrange(len(SHAPES)), colour, plate)

    def _frame_end(
        self, row: Row, seen: Seen, request: str | Look | None, before: set[int] | None, was_meeting: bool | None
    ) -> str | Look | None:
        """What is to be said after a frame."""
        if request is None:
            row.aim(EOS_ID, SILENCE, "silence")
            return None
        if request == "meet":
            meeting = self._meeting(seen.now, seen.t)
            said = [wording.THEY_MEET] if meeting and not was_meeting and was_meeting is not None else []
        elif before is None:
            said = []
        else:
            new = [thing for thing in seen.now if thing.number not in before]
            said = [wording.name(thing.look) for thing in new if request in ("any", thing.look)]
        if said and row.room > 20:
            row.say(self.ids(" and".join(said)), "announce")
            return None if isinstance(request, Look) else request
        weight = SILENCE_ASKED[self.pictures] if before is not None and not said else 0.0
        row.aim(EOS_ID, weight, "silence")
        return request

    # -- questions ----------------------------------------------------------------------------------------------

    def _ask(self, row: Row, seen: Seen, rng: random.Random, kinds: dict[str, int]) -> bool:
        """One question and its answer; False if there is nothing to ask."""
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        things = list(seen.things.values())
        found = self._question(kind, things, seen, rng)
        if found is None:
            return row.room > 16 and bool(things)
        text, answer, name = found
        question, ids = self.ids(text), self.ids(answer)
        if row.room < len(question) + len(ids) + 1:
            return False
        row.put(question)
        row.say(ids, name)
        return True

    def _question(
        self, kind: str, things: list[Thing], seen: Seen, rng: random.Random
    ) -> tuple[str, str, str] | None:  # fmt: skip
        if kind == "what":
            place = rng.choice([thing.place for thing in seen.now] + [rng.randrange(4)])
            there = [thing for thing in seen.now if thing.place == place]
            return wording.what_at(place), wording.name(there[0].look) if there else wording.NOTHING, "present"
        if kind == "many":
            return wording.how_many(), wording.NUMBERS[len(seen.now)], "count"
        if kind == "meet":
            return wording.DO_MEET, wording.YES if self._meeting(seen.now, seen.t) else wording.NO, "here"
        if kind == "here":
            wanted = rng.choice(seen.now).look if seen.now and rng.random() < 0.5 else None
            look = wanted or (rng.choice(things).look if things and rng.random() < 0.6 else self._look(rng))
            is_here = any(thing.look == look for thing in seen.now)
            return wording.here(look), wording.YES if is_here else wording.NO, "here"
        if not things:
            return None
        thing = rng.choice(things)
        if kind == "where":
            if rng.random() < 0.1:
                look = self._look(rng)
                if rng.random() < 0.5:  # one word away from something that was seen
                    near = thing.look
                    look = rng.choice(
                        (Look(look.shape, near.colour, near.plate), Look(near.shape, near.colour, look.plate))
                    )
                if look.colour != look.plate and all(other.look != look for other in things):
                    return wording.where(look), wording.NOT_SEEN, "absent"
            return wording.where(thing.look), f" {wording.PLACES[thing.place]}", "where"
        if kind == "plate":
            key = (thing.look.colour, thing.look.shape, thing.place)
            if sum((o.look.colour, o.look.shape, o.place) == key for o in things) > 1:
                return None
            return wording.plate_of(thing.look, thing.place), f" {COLOURS[thing.look.plate]}", "plate"
        others = [other for other in things if abs(other.comes - thing.comes) > 1.0]
        if not others:
            return None
        other = rng.choice(others)
        newer = max(thing, other, key=lambda x: x.comes)
        return wording.later(thing.look, other.look), wording.name(newer.look), "order"


def batch_of(rows: list[Row]) -> Batch:
    """Rows as tensors."""
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    picked: list[tuple[int, int]] = []
    for row in rows:
        picked += [(len(labels) + i, k) for i, k in row.picked]
        images += row.images
        labels += row.labels
    return Batch(
        torch.tensor([row.tokens for row in rows]),
        torch.tensor([row.targets for row in rows]),
        torch.tensor([row.weights for row in rows]),
        torch.from_numpy(np.stack(images)) if images else None,
        torch.from_numpy(np.stack(labels)),
        torch.tensor(picked),
        torch.tensor([row.kinds for row in rows]),
    )


__all__ = ["KINDS", "NOW", "PAST", "Batch", "Row", "RowMaker", "batch_of"]
