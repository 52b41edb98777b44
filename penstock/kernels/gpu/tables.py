"""What changes from step to step, in tensors that stay where they are: tokens, rows, positions, angles.

A table is made for a shape of step and filled before each one: one copy of numbers, one of angles (and the tokens,
which may be on the device already).  Nobody waits for the copies: what they read is taken at once, because it is not
pinned.  The host computes angles in float64, as everywhere (memory/positions.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from penstock.core import Span
from penstock.kernels.gpu.chunk import Packed
from penstock.kernels.gpu.decode import Singles
from penstock.memory.positions import Rotary, sink_query_positions, sink_shift
from penstock.memory.ring import RingGroup


def rotary_of(group: RingGroup) -> Rotary:
    """The group's rotary embedding; groups without one are refused before."""
    assert isinstance(group.rotary, Rotary)
    return group.rotary


class SingleTable:
    """n places for single tokens of rows whose sinks are complete; places that a step leaves over are not used."""

    def __init__(self, groups: Sequence[RingGroup], places: int, device: torch.device) -> None:
        self.groups, self.places = groups, places
        self._numbers = torch.zeros(2, places, dtype=torch.int64, device=device)
        self.tokens = torch.zeros(places, dtype=torch.int64, device=device)
        shapes = [(rotary_of(g).width // 2, g.sinks) for g in groups]
        self._angles = torch.zeros(sum(2 * places * half * (1 + s) for half, s in shapes), device=device)
        self.singles: list[Singles] = []
        parts = iter(
            self._angles.split([n for half, s in shapes for n in [places * half] * 2 + [places * half * s] * 2])
        )
        for half, s in shapes:
            cos, sin = next(parts).view(places, half), next(parts).view(places, half)
            sinks = next(parts).view(places, s, half), next(parts).view(places, s, half)
            self.singles.append(Singles(self._numbers[0], self._numbers[1], cos, sin, *sinks))
        self._ahead: tuple[tuple[int, ...], Tensor] = ((), torch.empty(0))

    def fill(self, spans: Sequence[Span], starts: Sequence[int], tokens: Tensor) -> None:
        """The tokens [k <= n] of rows that have so many tokens already."""
        unused = self.places - len(spans)
        where = tuple(starts) + (0,) * unused
        angles = self._ahead[1] if self._ahead[0] == where else self._angles_at(where)
        self._angles.copy_(angles, non_blocking=True)
        self._numbers.copy_(torch.tensor([[s.row for s in spans] + [-1] * unused, where]), non_blocking=True)
        self.tokens[: len(tokens)].copy_(tokens)

    def prepare_next(self, starts: Sequence[int]) -> None:
        """Compute the angles of the next token of the same rows, while the device works on this one."""
        where = tuple(start + 1 for start in starts) + (0,) * (self.places - len(starts))
        self._ahead = (where, self._angles_at(where))

    def _angles_at(self, where: tuple[int, ...]) -> Tensor:
        now = torch.tensor(where)
        out: list[Tensor] = []
        for group in self.groups:
            shift = torch.tensor([sink_shift(t, group.planner.entries, group.planner.policy) for t in where])
            out += rotary_of(group).angles(now)
            out += rotary_of(group).angles(torch.arange(group.sinks) + shift[:, None])
        return torch.cat([x.flatten() for x in out])


class PackedTable:
    """N packed tokens of M spans of any kind; `own` holds the angles of each group's sinks at their own indices."""

    def __init__(
        self, groups: Sequence[RingGroup], own: Sequence[tuple[Tensor, Tensor]], count: int, spans: int, longest: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.groups = groups
        self._numbers = torch.zeros(4 * spans + count, dtype=torch.int64, device=device)
        self.tokens = torch.zeros(count, dtype=torch.int64, device=device)
        halves = [rotary_of(g).width // 2 for g in groups]
        self._angles = torch.zeros(4 * count * sum(halves), device=device)
        parts = iter(self._angles.split([n for half in halves for n in [count * half] * 4]))
        numbers = self._numbers[: 4 * spans].view(spans, 4), self._numbers[4 * spans :]
        self.packed = [
            Packed(
                *numbers,
                next(parts).view(count, half),
                next(parts).view(count, half),
                next(parts).view(count, half),
                next(parts).view(count, half),
                *angles,
                longest,
            )
            for half, angles in zip(halves, own)
        ]

    def fill(self, spans: Sequence[Span], starts: Sequence[int], tokens: Tensor) -> None:
        """The tokens [N] of spans, packed in their order, whose rows have so many tokens already."""
        numbers: list[int] = []
        span_of: list[int] = []
        positions = torch.cat([torch.arange(t, t + span.count) for span, t in zip(spans, starts)])
        for i, (span, start) in enumerate(zip(spans, starts)):
            numbers += [span.row, len(span_of), start, span.count]
            span_of += [i] * span.count
        angles: list[Tensor] = []
        for group in self.groups:
            seen = sink_query_positions(positions, group.planner.entries, group.planner.policy)
            angles += [*rotary_of(group).angles(positions), *rotary_of(group).angles(seen)]
        self._angles.copy_(torch.cat([x.flatten() for x in angles]), non_blocking=True)
        self._numbers.copy_(torch.tensor(numbers + span_of), non_blocking=True)
        self.tokens.copy_(tokens)
