"""From a source to the model in three threads: decoding, encoding and reading overlap, nothing grows.

    source ──► pace ──► frame reducers ──[queue]──► vision tower ──► token reducers ──[queue]──► the caller reads

On a real clock the first queue drops its oldest frames when the model is slow; on a simulated one everybody waits.
What comes out is the same whatever the threads do, unless frames were dropped, and those are counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from penstock.core import Clock, Frame
from penstock.io.bounded import BoundedQueue, Closed, Policy
from penstock.io.frames import FrameSource, Notice
from penstock.reducers import Chain, Moment, Reduced
from penstock.reducers.chain import ChainState
from penstock.watch.eyes import Eyes

_PATIENCE = 10.0  # seconds for a thread to notice that nobody takes what it gives
WAITING, ENCODED = 8, 4  # frames that may wait: before the vision tower, behind it


@dataclass(frozen=True)
class Seen:
    """A unit of frames on its way into the memory."""

    frames: tuple[Frame, ...]
    visual: Moment
    reduced: Reduced

    @property
    def t(self) -> float:
        """Seconds of stream time of its last frame."""
        return self.frames[-1].t


@dataclass(frozen=True)
class Skipped:
    """A frame that a reducer left out: time goes on."""

    t: float


class Pipeline:
    """Runs once.  `native`: a recorded source plays at its own speed; `policy`: what happens when the model is slow."""

    def __init__(
        self, source: FrameSource, eyes: Eyes, chain: Chain, clock: Clock, *, policy: Policy = "wait",
        native: bool = False, waiting: int = WAITING,
    ) -> None:  # fmt: skip
        self.source, self.eyes, self.chain, self.clock, self.native = source, eyes, chain, clock, native
        self._raw: BoundedQueue[Notice | Skipped | Frame] = BoundedQueue(waiting, policy)
        self._encoded: BoundedQueue[Seen | Notice | Skipped] = BoundedQueue(ENCODED, "wait")
        self._threads = [
            threading.Thread(target=self._decode, name="penstock-decode", daemon=True),
            threading.Thread(target=self._encode, name="penstock-encode", daemon=True),
        ]
        self.began: float | None = None  # the clock at stream time 0
        self.frames_in = 0  # frames the source gave
        self.frames_skipped = 0  # left out by frame reducers
        self.busy = {"decode": 0.0, "encode": 0.0}  # seconds of work

    @property
    def frames_dropped(self) -> int:
        """Frames that were lost because the model is slower than the source."""
        return self._raw.dropped_count

    @property
    def is_timed(self) -> bool:
        """Whether a real clock counts."""
        return self.native or self.source.is_live

    @property
    def now(self) -> float | None:
        """Stream time on a real clock; None where the frames are the clock."""
        if self.began is None or not self.is_timed:
            return None
        return self.clock.now() - self.began

    @property
    def lag(self) -> int:
        """Frames that wait."""
        return len(self._raw) + len(self._encoded)

    @property
    def filled(self) -> float:
        """How much of the room for what waits is taken, 0 to 1."""
        return self.lag / (self._raw.size + self._encoded.size)

    def items(self, patience: Callable[[], float] | None = None) -> Iterator[Seen | Notice | Skipped | None]:
        """What comes, in order; None when nothing came for `patience()` seconds (without it: waits for ever)."""
        for thread in self._threads:
            thread.start()
        try:
            while True:
                try:
                    yield self._encoded.take(None if patience is None else patience())
                except TimeoutError:
                    yield None
                except Closed:
                    return
        finally:
            self.close()

    def close(self) -> None:
        """Stop the threads; whatever waits is dropped."""
        self.source.close()
        self._raw.abandon()
        self._encoded.abandon()
        for thread in self._threads:
            if thread.ident is not None:  # a step of the tower must be over before the interpreter goes
                thread.join(_PATIENCE)

    # -- threads ----------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        try:
            state, frames = self.chain.start(), self.source.frames()
            while True:
                began = time.perf_counter()
                item = next(frames, None)
                self.busy["decode"] += time.perf_counter() - began
                if item is None:
                    break
                if isinstance(item, Notice):
                    self._raw.put(item, always=True)
                    continue
                self.frames_in += 1
                self._pace(item.t)
                state, verdict = self.chain.frame(state, item)
                if verdict.frame is None:
                    self.frames_skipped += 1
                    if self._raw.policy == "wait" or not len(self._raw):  # never in the place of a frame
                        self._raw.put(Skipped(item.t))
                else:
                    self._raw.put(verdict.frame)
            self._raw.end()
        except Closed:
            return
        except BaseException as error:
            self._raw.end(error)

    def _pace(self, t: float) -> None:
        if self.began is None:
            self.began = self.clock.now() - t
        if self.native:
            self.clock.sleep(self.began + t - self.clock.now())

    def _encode(self) -> None:
        try:
            state, unit = self.chain.start(), list[Frame]()
            while True:
                try:
                    item = self._raw.take()
                except Closed:
                    if unit:
                        self._encode_unit(state, unit)
                    break
                if not isinstance(item, Frame):
                    self._encoded.put(item)
                    continue
                unit.append(item)
                if len(unit) == self.eyes.unit:
                    state, unit = self._encode_unit(state, unit), []
            self._encoded.end()
        except Closed:
            return
        except BaseException as error:
            self._encoded.end(error)

    def _encode_unit(self, state: ChainState, unit: list[Frame]) -> ChainState:
        began = time.perf_counter()
        visual = self.eyes.encode(unit)
        state, reduced = self.chain.visual(state, visual)
        self.busy["encode"] += time.perf_counter() - began
        self._encoded.put(Seen(tuple(unit), visual, reduced))
        return state
