"""Streams of several kinds of token, for methods that route by kind: frames of vision between words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.core import Kind, Phase, Span
from penstock.memory import Cascade, Entries, Layer, Memory, Place, State, Unit
from penstock.memory.flow import FlowGroup
from tests.laws import laws
from tests.laws.cases import Case

TEXT, VISION, ANSWER = int(Kind.TEXT), int(Kind.VISION), int(Kind.ANSWER)

OF_KINDS = {"bounded", "chunk_invariant", "causal", "steady"}


@dataclass(frozen=True)
class Mixed(Case):
    """A law's case whose tokens have kinds: a pattern, repeated by position in the stream.

    Its length should divide 256, so that `steady` finds the same tokens far away.
    """

    pattern: tuple[int, ...] = (TEXT,)

    def kinds(self, start: int, count: int) -> Tensor:
        """[count] uint8."""
        return torch.tensor(
            [self.pattern[i % len(self.pattern)] for i in range(start, start + count)], dtype=torch.uint8
        )

    @torch.no_grad()
    def step(self, memory: Memory, packed: dict[int, Tensor], phase: Phase = Phase.INGEST) -> dict[int, Tensor]:
        spans = [Span(row, len(part)) for row, part in packed.items()]
        kinds = torch.cat([self.kinds(memory.length(span.row), span.count) for span in spans])
        with memory.step(spans, phase, kinds) as step:
            logits = self.model.run(torch.cat(list(packed.values())), step, None, "all")
        assert logits is not None
        return dict(zip(packed, logits.split([span.count for span in spans])))

    def lossless(self) -> Mixed:
        off = getattr(self.method, "lossless", None)
        return self if off is None else Mixed(off(), self.family, self.pattern)

    def check(self, *names: str) -> None:
        """The laws named, or those that a kind of token may break; exactness has tests of its own; and `saved`."""
        for name, law in [("naive", laws.naive), *laws.LAWS.items()]:
            if name in names if names else name == "naive" or name in OF_KINDS & self.method.claims:
                law(self)
        self.saved()

    def saved(self) -> None:
        """A row that was saved and loaded goes on with the same bits."""
        tokens = torch.arange(100) % 50 + 3
        for length in (5, 61):
            memory, other = self.memory(), self.memory()
            self.feed(memory, tokens[:length], 7)
            other.load_row(memory.save_row(0), length, 0)
            assert torch.equal(self.feed(memory, tokens[length:], 5), self.feed(other, tokens[length:], 5))


def states(memory: Memory) -> Iterator[tuple[tuple[State, ...], FlowGroup]]:
    """The parts' states of each layer of the first row."""
    for group in memory.groups:
        assert isinstance(group, FlowGroup)
        for layer in group.lanes[0]:
            yield layer[0].states, group


@dataclass
class Alone:
    """A cascade's parts without a model: entries in, entries held."""

    cascade: Cascade
    heads: int = 2
    width: int = 4

    def __post_init__(self) -> None:
        layer = Layer(0, self.heads, self.heads, self.width, self.width, None, None)
        self.place = Place(
            layer, self.heads, 1, torch.float32, torch.device("cpu"), self.cascade.positions, self.cascade.unit, 0,
            False, "0.0", lambda: None,
        )  # fmt: skip
        self.states: list[State] = [part.begin(self.place) for part in self.cascade.segments]
        self.count = 0

    def feed(self, key: Tensor, kinds: Tensor, query: Tensor | None = None) -> list[Entries]:
        """One unit: keys (values are the same) [H, U, D], kinds [U]; returns what the last part gives up."""
        size = key.shape[1]
        seen = torch.arange(self.count, self.count + size)
        flowing: Entries | None = Entries(
            key, key.clone(), seen.expand(self.heads, -1), kinds.to(torch.uint8).expand(self.heads, -1)
        )
        unit = Unit(self.count, size, Phase.INGEST, query, seen, None)
        for i, part in enumerate(self.cascade.segments):
            if flowing is not None and len(flowing):
                self.states[i], flowing = part.admit(self.states[i], flowing, unit, self.place)
        self.count += size
        return [] if flowing is None else [flowing]

    def held(self) -> list[list[int]]:
        """Indices seen, per part."""
        return [part.remembered(state).tolist() for part, state in zip(self.cascade.segments, self.states)]


def random_kinds(count: int, seed: int, frame: int = 1) -> Tensor:
    """[>= count]: runs of words, frames of `frame` vision tokens, and answers, in random order."""
    generator = torch.Generator().manual_seed(seed)
    out: list[int] = []
    while len(out) < count:
        kind = (TEXT, VISION, VISION, ANSWER)[int(torch.randint(4, (1,), generator=generator))]
        out += [kind] * (frame if kind == VISION else int(torch.randint(1, 5, (1,), generator=generator)))
    return torch.tensor(out, dtype=torch.uint8)
