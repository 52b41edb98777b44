"""Bytes of a source into the sessions of some lanes: token-exact, interruptible between steps.

    source --256 bytes--> encoder --ids--> queue --one chunk--> a step of each lane

A source gives no byte before it is asked for, and what was taken from it enters the memory, also after an interruption:
the rest of a pipe stays in the pipe.  A limit cuts the stream behind a token: what was encoded beyond it is dropped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from penstock.cli.interrupts import Interrupts
from penstock.cli.lanes import Lane
from penstock.cli.threads import Threads
from penstock.errors import InputError
from penstock.io import TextSource

_BYTES_PER_TOKEN = 4


class Reading:
    """`run` reads; the counters may be looked at whenever it yields."""

    def __init__(self, source: TextSource, lanes: list[Lane], limit: int | None, interrupts: Interrupts) -> None:
        self.source, self.lanes, self.limit, self.interrupts = source, lanes, limit, interrupts
        self.main = lanes[0]
        self.threads = Threads() if self.main.session.model.attached.device.type == "cpu" else None
        self.start = self.main.session.tokens
        self.waited = 0.0  # seconds without input
        self.aside = 0.0  # seconds that the other lanes took
        self.waits = False  # nothing has arrived for a moment
        self.ended: str | None = None  # input, tokens, interrupted
        self._began = time.perf_counter()
        self._stopped_at: float | None = None
        self._queue: list[int] = []

    @property
    def tokens(self) -> int:
        """Model inputs of this run so far."""
        return self.main.session.tokens - self.start

    @property
    def seconds(self) -> float:
        """Time spent on the main lane's stream."""
        now = time.perf_counter() if self._stopped_at is None else self._stopped_at
        return max(0.0, now - self._began - self.waited - self.aside)

    def run(self) -> Iterator[None]:
        """Read to the end; yields after each step and while nothing arrives."""
        session = self.main.session
        encoder = session.encoder
        if encoder is None:
            raise InputError(f"{session.model.name} has no tokenizer: text cannot be read with it.")
        self._began = time.perf_counter()
        try:
            pieces = self.source.pieces(max(64, _BYTES_PER_TOKEN * session.chunk))
            while self.ended is None:
                piece = self._next(pieces)
                if piece is None:
                    self._queue += encoder.flush()
                    yield from self._steps(everything=True)
                    self.ended = self.ended or "input"
                else:
                    self._queue += encoder.feed(piece)
                    yield from self._steps(everything=not piece)
                    if not piece:
                        yield
                if self.ended is None and self.interrupts.flagged:
                    yield from self._steps(everything=True)
                    self.ended = self.ended or "interrupted"
            if self.ended == "input" and self.tokens == 0:
                raise InputError(f"{self.source.name} has no text that becomes tokens: give some text.")
        finally:
            self._stopped_at = time.perf_counter()

    def _next(self, pieces: Iterator[bytes]) -> bytes | None:
        began = time.perf_counter()
        piece = next(pieces, None)
        self.waited += time.perf_counter() - began
        self.waits = piece == b""
        return piece

    def _steps(self, everything: bool) -> Iterator[None]:
        """Steps of whole chunks, and of what is left over if `everything` is to enter now."""
        chunk = self.main.session.chunk
        while self._queue and self.ended is None:
            left = None if self.limit is None else self.limit - self.tokens
            if len(self._queue) < chunk and not everything and (left is None or len(self._queue) < left):
                return
            tokens = self._queue[: chunk if left is None else min(chunk, left)]
            del self._queue[: len(tokens)]
            self._step(tokens)
            yield
            if self.limit is not None and self.tokens >= self.limit:
                self._queue.clear()
                self.main.session.truncate(self.main.session.tokens)  # drops the text held back behind the limit
                self.ended = "tokens"

    def _step(self, tokens: list[int]) -> None:
        took = self.main.read(tokens)
        if self.threads is not None and len(tokens) == self.main.session.chunk:
            self.threads.note(took)
        began = time.perf_counter()
        for lane in self.lanes[1:]:
            if lane.stopped is None:
                lane.read(tokens)
        self.aside += time.perf_counter() - began
