"""A model that sees, small enough to read: colours of four places are four tokens of a random language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import torch
from transformers import AutoTokenizer

import penstock
from penstock import Session
from penstock.core import Frame, Kind
from penstock.models.load import TINY
from penstock.reducers import Moment, Reduced
from penstock.reducers.base import cells
from penstock.testing import tiny_model
from penstock.watch.opening import Sight

GRID = (2, 2)


class FakeEyes:
    """The mean colour of each place as its token."""

    unit = 1

    def __init__(self, session: Session) -> None:
        self.session = session
        self.read_at: list[float] = []

    def encode(self, frames: Sequence[Frame]) -> Moment:
        frame = frames[-1]
        return Moment(torch.from_numpy(cells(frame.image, GRID)).reshape(4, 3), GRID, frame.image, frame.t)

    def read(self, visual: Moment, reduced: Reduced, into: Session | None = None) -> int:
        self.read_at += [] if into else [visual.t]
        ids = (visual.tokens[reduced.index].mean(-1) * 255).int() + 100
        return (into or self.session).ingest(ids.tolist(), kinds=[Kind.VISION] * len(ids))


@cache
def model() -> penstock.Model:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    return penstock.load(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer=tokenizer)


def sight(memory: str = "streaming-llm", budget: int = 64) -> Sight:
    session = penstock.open(model(), memory, budget, path="eager")
    session.feed("The stream begins here.")  # what no window holds for long
    return Sight(FakeEyes(session), session, "a tiny random model", session.budget)


def video(count: int, rate: float = 2.0, size: tuple[int, int] = (32, 32)) -> Iterator[Frame]:
    """A picture whose brightness grows, every `1/rate` seconds."""
    for i in range(count):
        yield Frame(np.full((*size, 3), (7 * i) % 256, np.uint8), i / rate, i)
