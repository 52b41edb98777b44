"""The specification: a cascade run literally, one token at a time, with lists.

Slow and obvious.  Every entry is kept raw with its seen index; each token first enters the cascade (what a segment
gives up enters the next), then reads every entry that is left, numbered by the policy, through one softmax in float64.
`ring.py` must agree with this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from penstock.core import Span
from penstock.memory.attend import Partial, learned_sink, partial_math
from penstock.memory.cascade import Cascade
from penstock.memory.layout import Layer
from penstock.memory.positions import Alibi, Rotary
from penstock.memory.segments import Segment, Sinks, Window


@dataclass
class Held:
    """One entry of one layer: key [Hkv, D] raw, value [Hkv, Dv]."""

    key: Tensor
    value: Tensor
    seen: int


@dataclass
class NaiveSegment:
    """A list of entries and the rule of its segment."""

    rule: Segment
    entries: list[Held] = field(default_factory=list)

    def admit(self, entry: Held) -> Held | None:
        """Take an entry; return the one given up for it (or itself, when it is not wanted)."""
        if isinstance(self.rule, Sinks) and entry.seen >= self.rule.size:
            return entry
        self.entries.append(entry)
        if isinstance(self.rule, Window) and len(self.entries) > self.rule.size:
            return self.entries.pop(0)
        return None


def numbered(entries: Sequence[Held], sinks: int, budget: int | None, policy: str) -> tuple[list[int], int, int]:
    """(key positions, query position for the sinks, query position for the rest) of entries in stream order.

    The newest entry is the query's own.
    """
    now = entries[-1].seen
    if policy == "contiguous":
        return list(range(len(entries))), len(entries) - 1, len(entries) - 1
    clamp = now if policy == "stream" or budget is None else min(now, budget - 1)
    return [e.seen for e in entries], clamp, now


@dataclass(frozen=True)
class NaivePlan:
    spans: tuple[tuple[int, int, int, int], ...]  # row, offset, start, count


class NaiveGroup:
    """The interface of RingGroup over lists."""

    def __init__(
        self, layers: Sequence[Layer], cascade: Cascade, rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers, self.cascade, self.rows, self.device = tuple(layers), cascade, rows, device
        self.rooms = [[self._fresh() for _ in layers] for _ in range(rows)]

    def _fresh(self) -> list[NaiveSegment]:
        return [NaiveSegment(rule) for rule in self.cascade.segments]

    @property
    def nbytes(self) -> int:
        held = [e for row in self.rooms for layer in row for segment in layer for e in segment.entries]
        return sum(e.key.numel() * e.key.itemsize + e.value.numel() * e.value.itemsize for e in held)

    def plan(self, spans: list[Span], starts: list[int]) -> NaivePlan:
        out, offset = [], 0
        for span, start in zip(spans, starts):
            out.append((span.row, offset, start, span.count))
            offset += span.count
        return NaivePlan(tuple(out))

    def attend(
        self, index: int, query: Tensor, key: Tensor, value: Tensor, plan: NaivePlan, *, scale: float,
        softcap: float | None = None, sink_logit: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As RingGroup.attend."""
        outs = []
        for row, offset, start, count in plan.spans:
            for i in range(count):
                at = offset + i
                entry: Held | None = Held(key[0, :, at].clone(), value[0, :, at].clone(), start + i)
                for segment in self.rooms[row][index]:
                    if entry is not None:
                        entry = segment.admit(entry)
                part = self._read(index, row, query[:, :, at : at + 1], scale, softcap)
                outs.append((part if sink_logit is None else learned_sink(part, sink_logit.double())).out)
        return torch.cat(outs, dim=2).transpose(1, 2).to(query.dtype)

    def _read(self, index: int, row: int, query: Tensor, scale: float, softcap: float | None) -> Partial:
        segments = self.rooms[row][index]
        entries = sorted((e for s in segments for e in s.entries), key=lambda e: e.seen)
        sinks = sum(e.seen < self.cascade.sinks for e in entries)
        positions, sink_query, window_query = numbered(entries, sinks, self.cascade.entries, self.cascade.positions)
        keys = torch.stack([e.key for e in entries], dim=1)[None].double()  # [1, Hkv, T, D]
        values = torch.stack([e.value for e in entries], dim=1)[None].double()
        encoding = self.layers[0].encoding
        query = query.double()
        mask = None
        if isinstance(encoding, Rotary):
            # One softmax, two query positions: instead of rotating the query twice, move the sinks by the difference.
            moved = [p + (window_query - sink_query if i < sinks else 0) for i, p in enumerate(positions)]
            keys = _turn(encoding, keys, torch.tensor(moved))
            query = _turn(encoding, query, torch.tensor([window_query]))
        elif isinstance(encoding, Alibi):
            far = [p + (window_query - sink_query if i < sinks else 0) for i, p in enumerate(positions)]
            mask = encoding.bias(torch.tensor([window_query]), torch.tensor(far)).double()
        return partial_math(query, keys, values, scale=scale, mask=mask, softcap=softcap)


def _turn(encoding: Rotary, x: Tensor, positions: Tensor) -> Tensor:
    """Rotate x [..., T, D] in float64, without the rounding of float32 tables."""
    turns = positions.double()[:, None] * encoding.inv_freq  # [T, R/2]
    half = turns.shape[-1]
    if encoding.interleaved:
        pairs = torch.view_as_complex(x[..., : 2 * half].reshape(*x.shape[:-1], half, 2).contiguous())
        turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(turns), turns)).flatten(-2)
    else:
        pairs = torch.complex(x[..., :half], x[..., half : 2 * half]) * torch.polar(torch.ones_like(turns), turns)
        turned = torch.cat((pairs.real, pairs.imag), dim=-1)
    return torch.cat((turned, x[..., 2 * half :]), dim=-1)
