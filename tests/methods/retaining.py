"""Retention written as a literal loop over one layer: lists of entries, one token at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from penstock.memory import Memory, Rotary
from penstock.memory.retention import coarse
from tests.memory.stack import Stack


@dataclass(eq=False)
class Entry:
    """One entry of one key-value head, with what a score may need."""

    seen: int
    key: Tensor  # [D] raw
    value: Tensor  # [D]
    mass: float = 0.0  # attention of all queries since it came, over the heads of the group
    unit: dict[tuple[int, int], float] = field(default_factory=dict)  # (query head, query) of this unit -> attention


Choice = Callable[["Loop", Sequence[list[Entry]]], Sequence[list[Entry]]]


@dataclass
class Loop:
    """Sinks, and what `choose` leaves of all other entries where a unit ends (head by head, oldest first)."""

    stack: Stack
    sinks: int
    unit: int
    positions: str
    choose: Choice
    heads: list[list[Entry]] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)  # [Hq, D] raw, of all tokens

    def __post_init__(self) -> None:
        self.heads = [[] for _ in range(self.stack.kv_heads)]

    @property
    def group(self) -> int:
        return self.stack.heads // self.stack.kv_heads

    def feed(self, tokens: Sequence[int]) -> Tensor:
        """Outputs [N, Hq, D]."""
        return torch.stack([self._token(token) for token in tokens])

    def held(self) -> list[list[int]]:
        """Indices of what is left beside the sinks, by head."""
        return [[e.seen for e in entries if e.seen >= self.sinks] for entries in self.heads]

    def at(self, entries: Sequence[Entry]) -> list[int]:
        """Where the entries of one head stand."""
        return list(range(len(entries))) if self.positions == "contiguous" else [e.seen for e in entries]

    def product(self, query: Tensor, key: Tensor, distance: int) -> float:
        """Raw query times raw key, `distance` apart."""
        encoding = self.stack.geometry.layers[0].encoding
        assert isinstance(encoding, Rotary)
        half = encoding.inv_freq.numel()
        q, k = (torch.complex(x[:half], x[half:]) for x in (query, key))
        turn = torch.polar(torch.ones(half).double(), -distance * encoding.inv_freq)
        return float((q * k.conj() * turn.conj()).real.sum())

    def _token(self, token: int) -> Tensor:
        stack, now = self.stack, len(self.queries)
        self.queries.append(stack.queries[0, token].double())
        out = []
        for h, entries in enumerate(self.heads):
            entries.append(Entry(now, stack.keys[0, token, h].double(), stack.values[0, token, h].double()))
            at = self.at(entries)
            for q in range(h * self.group, (h + 1) * self.group):
                scores = [self.product(self.queries[-1][q], e.key, at[-1] - p) for e, p in zip(entries, at)]
                shares = torch.softmax(torch.tensor(scores).double() * stack.scale, 0)
                out.append(sum(s * e.value for s, e in zip(shares, entries)))
                for share, entry in zip(shares.tolist(), entries):
                    entry.mass += share
                    entry.unit[q, now] = share
        if (now + 1) % self.unit == 0:
            rest = [[e for e in entries if e.seen >= self.sinks] for entries in self.heads]
            left = self.choose(self, rest)
            self.heads = [e[: self.sinks] + kept for e, kept in zip(self.heads, left)]
            for entry in (e for entries in self.heads for e in entries):
                entry.unit.clear()
        return torch.stack([torch.as_tensor(o) for o in out])


def rounded(score: float) -> float:
    """To the ten bits that scores are compared by."""
    return float(coarse(torch.tensor(score)))


def highest(score: Callable[[Entry], float], entries: list[Entry], count: int, recent: int) -> list[Entry]:
    """The newest `recent` and the highest others, `count` in all; of equals (to ten bits) the newer."""
    old, new = entries[: len(entries) - recent], entries[len(entries) - recent :]
    kept = sorted(old, key=lambda e: (rounded(score(e)), e.seen), reverse=True)[: count - recent]
    return sorted(kept, key=lambda e: e.seen) + new


def by_score(score: Callable[[Entry], float], size: int, recent: int) -> Choice:
    """Each head for itself."""

    def choose(loop: Loop, heads: Sequence[list[Entry]]) -> Sequence[list[Entry]]:
        return [highest(score, e, size, recent) if len(e) > size else e for e in heads]

    return choose


def held(memory: Memory, part: int = 1) -> list[list[int]]:
    """Indices that a part of the first layer holds, by head."""
    found: list[list[int]] = memory.groups[0].lanes[0][0][0].states[part]["held"].seen.tolist()
    return found
