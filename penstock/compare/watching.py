"""Memories and reducers side by side on generated videos: every pair watches the same streams and is asked the same.

    shapes world, stream i ──► tower (once for all) ──► reducers ──► memory ──► at five moments: questions on forks

Questions about the past have their evidence a given distance back, counted in the tokens that come before any is left
out, so that a distance is the same moment for all; those about the present, counts and order have no distance.  Beside
the pairs stands `blind`: the same model, asked without having seen anything.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from penstock.compare.comparison import Progress, check
from penstock.compare.results import Cache, code_version, finite
from penstock.compare.run import Stopped
from penstock.compare.shapes import Tally
from penstock.compare.tower import Tower, frames
from penstock.core import Budget
from penstock.errors import PenstockError, UnsupportedModel, UsageError
from penstock.meter import percentile
from penstock.methods import Method, parse
from penstock.models.load import Model
from penstock.models.vision import Vision
from penstock.reducers import Chain
from penstock.session import Session
from penstock.watch.model_eyes import ModelEyes
from penstock.worlds.shapes.world import HORIZON, Question, Shapes

KINDS = ("present", "count", "order")  # beside `past`, which has a distance
WINDOWS = (0.5, 2.0, 5.0, 10.0)  # distances of the evidence, in budgets, if none are given
EACH = 10  # questions per stream and distance
MOMENTS = 5  # of a stream at which questions are asked
BLIND = "blind"
_ANSWER = 8  # tokens


@dataclass(frozen=True)
class Pair:
    """A memory behind reducers, under a budget; no memory: blind."""

    method: Method | None
    chain: Chain
    entries: int | None
    budget: int  # entries, for the distances
    given: str  # the budget as it was written

    @property
    def name(self) -> str:
        """memory + reducer + ..."""
        if self.method is None:
            return BLIND
        return str(self.method) + (f" + {self.chain}" if self.chain.reducers else "")


class Asked(NamedTuple):
    """A question at second `t` of a stream, and where its answer counts."""

    t: float
    question: Question
    tally: Tally


@dataclass
class Shown:
    """What one pair showed so far."""

    frames: int = 0
    seconds: float = 0.0  # of reading
    kept: int = 0
    dropped: int = 0
    steps: list[float] = field(default_factory=list)  # seconds per frame
    first: list[float] = field(default_factory=list)  # seconds to the first piece of an answer
    device: int = 0
    ram: int = 0
    disk: int = 0
    past: dict[int, Tally] = field(default_factory=dict)  # by distance in tokens
    kinds: dict[str, Tally] = field(default_factory=dict)

    @property
    def asked(self) -> Tally:
        """Over all questions."""
        every = [*self.past.values(), *self.kinds.values()]
        return Tally(sum(t.right for t in every), sum(t.asked for t in every))


@dataclass
class Watching:
    """Checked when made: a pair that cannot work is refused before any work."""

    model: Model
    methods: Sequence[Method]
    chains: Sequence[Chain]
    budgets: Sequence[Budget]
    distances: Sequence[int] = ()  # in tokens
    streams: int = 4
    seed: int = 0
    chunk: int = 64
    cache: Cache = field(default_factory=Cache)
    rows: list[dict[str, Any]] = field(default_factory=list)
    baselines: list[dict[str, Any]] = field(default_factory=list)
    ended: str | None = None  # done, interrupted

    def __post_init__(self) -> None:
        self.eyes = Vision(self.model, rate=Shapes(0).rate)
        probe = Session(self.model, "streaming-llm", 64, path="eager", vision=self.eyes)
        for frame in frames(0, 2 * self.eyes.unit):
            before, _ = probe.tokens, probe.see(frame)
        self.per_frame = (probe.tokens - before) / self.eyes.unit
        if self.per_frame <= 0:
            raise UnsupportedModel(f"{self.model.name} takes no token from a frame: choose another model.")
        self.pairs: list[Pair] = []
        for budget in self.budgets:
            window = check(self.model, parse("window"), budget)
            assert window is not None
            far = max(self.distances or [0]) / self.per_frame / Shapes(0).rate
            if far > HORIZON:
                raise UsageError(
                    f"--distance {max(self.distances)} is {far:.0f} s back, and this world knows {HORIZON:.0f}: "
                    f"give at most {int(HORIZON * self.per_frame * Shapes(0).rate)}."
                )
            self.pairs.append(Pair(None, Chain(), None, window, str(budget)))
            for method in self.methods:
                entries = check(self.model, method, budget if method.needs_budget else None)
                self.pairs += [Pair(method, chain, entries, window, str(budget)) for chain in self.chains]
        self._tower = Tower(self.eyes, pixels=any(chain.tokens for chain in self.chains))

    @property
    def stream(self) -> str:
        return "world:shapes"

    def distances_of(self, pair: Pair) -> list[int]:
        """In tokens."""
        return list(self.distances) or [round(windows * pair.budget) for windows in WINDOWS]

    def frames_of(self, pair: Pair) -> int:
        """Frames of one stream: the farthest evidence before the first moment, and a little before it."""
        wanted = (1.06 * max(self.distances_of(pair)) + 1.5 * pair.budget) / self.per_frame
        return -(-round(wanted) // self.eyes.unit) * self.eyes.unit

    def run(
        self, tell: Callable[[Progress], None] = lambda _: None, stop: Callable[[], bool] = lambda: False
    ) -> None:  # fmt: skip
        """All pairs that are not in the cache; one that fails leaves a row with its error."""
        try:
            for number, pair in enumerate(self.pairs):
                row = self.cache.get(self._key(pair))
                if row is None:
                    try:
                        row = self._row(pair, self._watch(number, pair, tell, stop))
                        self.cache.put(self._key(pair), row, {"model": self.model.name, "stream": self.stream})
                    except PenstockError as error:
                        row = self._row(pair, Shown()) | {"error": str(error)}
                (self.baselines if pair.method is None else self.rows).append(row)
            self.ended = "done"
        except Stopped:
            self.ended = "interrupted"

    # -- one pair -------------------------------------------------------------------------------------------------

    def _watch(self, number: int, pair: Pair, tell: Callable[[Progress], None], stop: Callable[[], bool]) -> Shown:
        found = Shown(
            past={distance: Tally() for distance in self.distances_of(pair)}, kinds={kind: Tally() for kind in KINDS}
        )
        count, total = self.frames_of(pair), self.frames_of(pair) * self.streams

        def tick() -> None:
            if stop():
                raise Stopped
            speed = found.frames / found.seconds if found.seconds else 0.0
            tell(Progress(number, len(self.pairs), pair.name, pair.entries, found.frames, total, speed,
                          found.asked.asked, found.asked.share, "frames"))  # fmt: skip

        for stream in range(self.streams):
            waiting = self._schedule(stream, pair, found, count)
            blind = pair.method is None
            session = Session(
                self.model, pair.method or "dense", pair.entries, chunk=self.chunk, path="eager", vision=self.eyes
            )

            def ask(before: float, session: Session = session, waiting: list[Asked] = waiting) -> None:
                while waiting and waiting[0].t < before:
                    asked = waiting.pop(0)
                    asked.tally.add(_answer(session, asked.question, found) == asked.question.answer)
                    tick()

            if not blind:
                self._read(session, pair, stream, count, found, tick, ask)
            ask(math.inf)
            session.runner.close()
        return found

    def _read(
        self, session: Session, pair: Pair, stream: int, count: int, found: Shown, tick: Callable[[], None],
        ask: Callable[[float], None],
    ) -> None:  # fmt: skip
        """Read a stream; `ask(t)` asks what is due before a frame of second t."""
        eyes, state = ModelEyes(self.eyes, session), pair.chain.start()
        units = self._tower.units(self.seed + stream, count, pair.chain)
        before = found.frames
        for encoded in units:
            ask(encoded.t)
            found.frames = before + round(encoded.t * Shapes(0).rate) + 1
            state, reduced = pair.chain.visual(state, encoded)
            began = time.perf_counter()
            eyes.read(encoded, reduced)
            found.steps.append(time.perf_counter() - began)
            found.seconds += found.steps[-1]
            found.kept += len(reduced.index)
            found.dropped += len(encoded.tokens) - len(reduced.index)
            memory = session._memory
            found.device = max(found.device, memory.nbytes)
            found.ram = max(found.ram, getattr(memory, "ram_bytes", 0))
            found.disk = max(found.disk, getattr(memory, "disk_bytes", 0))
            tick()
        found.frames = before + count

    def _schedule(self, stream: int, pair: Pair, found: Shown, count: int) -> list[Asked]:
        """What is asked of one stream, in the order of its moments, which lie in the stream's last budget."""
        world = Shapes(self.seed + stream)
        end, per_second = (count - 1) / world.rate, self.per_frame * world.rate
        world.timeline.until(end + 1)
        rng, out = random.Random(f"watching:{self.seed}:{world.seed}"), list[Asked]()

        def ask(i: int, kind: str, tally: Tally, distance: int | None = None) -> None:
            back = end - (MOMENTS - 1 - i % MOMENTS) / MOMENTS * pair.budget / per_second
            t = round(back * world.rate) / world.rate
            ago = None if distance is None else distance * rng.uniform(0.95, 1.05) / per_second
            question = world.ask(t, kind, rng, ago)  # type: ignore[arg-type]
            if question is not None:
                out.append(Asked(t, question, tally))

        for distance, tally in found.past.items():
            for i in range(EACH):
                ask(i, "past", tally, distance)
        for kind, tally in found.kinds.items():
            for i in range(EACH // 2):
                ask(i, kind, tally)
        return sorted(out, key=lambda asked: asked.t)

    # -- rows -----------------------------------------------------------------------------------------------------

    def _row(self, pair: Pair, found: Shown) -> dict[str, Any]:
        recall = [
            {"from": round(0.95 * distance), "to": round(1.05 * distance), "recall": tally.share, "n": tally.asked}
            for distance, tally in found.past.items() if tally.asked
        ]  # fmt: skip
        times = found.steps
        row = {
            "memory": BLIND if pair.method is None else str(pair.method),
            "reduce": str(pair.chain),
            "budget": pair.entries or pair.budget,
            "budget_given": pair.given,
            "recall": recall,
            "kinds": {kind: {"recall": tally.share, "n": tally.asked} for kind, tally in found.kinds.items()},
            "nll_mean": None,
            "bytes": {"device": found.device, "ram": found.ram, "disk": found.disk},
            "step_ms": {
                "p50": percentile(times, 0.5) * 1e3, "p99": percentile(times, 0.99) * 1e3, "slope_per_million": None,
            },
            "ingest_tokens_per_second": found.kept / found.seconds if found.seconds else None,
            "frames_per_second": found.frames / found.seconds if found.seconds else None,  # without the tower
            "first_token_ms": percentile(found.first, 0.5) * 1e3,
            "frames": found.frames,
            "tokens": found.kept,
            "tokens_dropped": found.dropped,
            "questions": found.asked.asked,
            "grows": pair.method is not None and not pair.method.needs_budget,
        }  # fmt: skip
        return dict(finite(row))

    def _key(self, pair: Pair) -> dict[str, Any]:
        attached = self.model.attached
        return {
            "world": "shapes", "model": self.model.fingerprint, "dtype": str(attached.geometry.dtype),
            "device": str(attached.device), "memory": pair.name, "entries": pair.entries, "budget": pair.budget,
            "distances": self.distances_of(pair), "streams": self.streams, "seed": self.seed, "chunk": self.chunk,
            "code": code_version(pair.method) + _code(),
        }  # fmt: skip

    @property
    def digest(self) -> str:
        """Of what was asked of whom."""
        keys = [self._key(pair) for pair in self.pairs]
        return hashlib.blake2b(json.dumps(keys, sort_keys=True).encode(), digest_size=8).hexdigest()


def _answer(session: Session, question: Question, found: Shown) -> str:
    """Without remembering that it was asked."""
    began, text = time.perf_counter(), ""
    for piece in session.reply(question.text, raw=True, remember=False, max_new=_ANSWER):
        if not text:
            found.first.append(time.perf_counter() - began)
        text += piece
    return text


@cache
def _code() -> str:
    """A hash of the source that says what is seen, left out and asked."""
    package, digest = Path(__file__).parents[1], hashlib.blake2b(digest_size=8)
    for room in ("reducers", "worlds/shapes", "watch/model_eyes.py", "seeing.py"):
        path = package / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(package)}\0".encode() + file.read_bytes())
    return digest.hexdigest()
