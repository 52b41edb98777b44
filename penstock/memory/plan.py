"""What one step needs to know, computed once on the host and shared by all layers of a group.

A step carries spans: `count` new tokens of a row whose stream so far has `start` tokens.  For a window of size W whose
entries arrive `age` steps late (0 for the first window; a second window receives what the first gives up):

          sinks                stored before the step        arriving in it
    |0 .. S-1| ... |start-age-W ............ start-age-1|start-age .. end-age-1|
                     leaving: the first `end - start` of them (once full)

An entry j is visible to the query at t exactly if  age <= t - j < age + W  and j >= S: a rule of indices alone, which
is why results do not depend on how a stream is cut into steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.core import Span
from penstock.memory.attend import masked_value
from penstock.memory.positions import Alibi, Angles, Encoding, Rotary, sink_query_positions, sink_shift


@dataclass(frozen=True)
class WindowPlan:
    """One window, one span."""

    stored: range  # seen indices held before the step
    arriving: range  # seen indices that enter in it
    leaving: range  # seen indices that leave in it
    slots: int  # slots that hold something before the step
    put: Tensor  # [kept] int64, slots (behind the sinks) of what arrives and is still held after the step
    mask: Tensor  # [C, slots + arriving] or [Hq, C, slots + arriving], additive


@dataclass(frozen=True)
class SpanPlan:
    """One span: where its tokens lie in the packed step, and what each part of the memory does with them."""

    row: int
    offset: int  # first token of the span in the packed step
    start: int  # tokens of the row before the step
    count: int
    windows: tuple[WindowPlan, ...]
    sinks_before: int  # sinks stored before the step
    sinks_after: int
    sink_angles: Angles | None  # the sinks at their own indices  [s, R/2]
    sink_query: Angles | None  # the queries as the sinks see them  [C, R/2]
    sink_mask: Tensor | None  # [C, s] or [Hq, C, s]


@dataclass(frozen=True)
class DecodePlan:
    """One new token for each of several adjacent rows whose sinks are complete: one batched read of the whole ring."""

    first_row: int
    rows: int
    # What is written, each [rows * (S + 2)]: the moved sinks, the new key, the new value.
    where: tuple[Tensor, Tensor, Tensor]  # (0 for keys or 1 for values, row, slot)
    angles: Angles | None  # [rows, 1, 1, R/2]
    sink_angles: Angles | None  # [rows, 1, S, R/2]: sinks moved to the distance that the policy gives them
    mask: Tensor  # [rows, 1 or Hq, 1, S + W], additive


@dataclass(frozen=True)
class Plan:
    """The step of one group of layers."""

    angles: Angles | None  # [N, R/2] of all packed tokens
    spans: tuple[SpanPlan, ...]  # read one by one, behind those that are
    decode: DecodePlan | None  # read as one batch


def window_ranges(start: int, end: int, sinks: int, age: int, size: int | None) -> tuple[range, range, range]:
    """(stored, arriving, leaving) seen indices for a step from `start` to `end`; `size` None keeps everything."""

    def clip(index: int) -> int:
        return max(sinks, index)

    arriving = range(clip(start - age), clip(end - age))
    if size is None:
        return range(sinks, arriving.start), arriving, range(0)
    stored = range(clip(start - age - size), arriving.start)
    return stored, arriving, range(stored.start, clip(end - age - size))


def seen_of_slots(stored: range, sinks: int, size: int) -> Tensor:
    """[filled] int64: which seen index lies in each slot of a ring of `size`, for the stored range."""
    slot = torch.arange(len(stored))
    arrived = stored.stop - sinks
    return sinks + (arrived - 1 - slot) // size * size + slot


def slot_of(seen: Tensor, sinks: int, size: int) -> Tensor:
    """The slot (after the sinks) of each seen index."""
    return (seen - sinks) % size


class Planner:
    """Makes the plans of one group: a cascade's sizes, the encoding of its layers, where tensors live."""

    def __init__(
        self, sinks: int, windows: tuple[int | None, ...], policy: str, encoding: Encoding, dtype: torch.dtype,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.sinks, self.windows, self.policy, self.encoding = sinks, windows, policy, encoding
        self.dtype, self.device = dtype, device
        self.grows = None in windows
        self.entries = sinks + sum(w or 0 for w in windows)  # meaningless while growing
        self.hidden = masked_value(dtype)

    def plan(self, spans: list[Span], starts: list[int]) -> Plan:
        """The plan of a packed step; `starts` are the rows' token counts before it."""
        single = self._singles(spans, starts)
        decode = self._decode(spans[:single], starts[:single]) if single == len(spans) or single > 1 else None
        if decode is not None and single == len(spans):
            return Plan(None, (), decode)
        positions = torch.cat([torch.arange(s, s + span.count) for s, span in zip(starts, spans)])
        angles = self.encoding.angles(positions, self.device) if isinstance(self.encoding, Rotary) else None
        plans, offset = [], 0
        for i, (span, start) in enumerate(zip(spans, starts)):
            if decode is None or i >= single:
                plans.append(self._span(span, start, offset))
            offset += span.count
        return Plan(angles, tuple(plans), decode)

    def _singles(self, spans: list[Span], starts: list[int]) -> int:
        """How many spans, from the first on, can be one batch: one token each, adjacent rows, all sinks there."""
        if self.grows or len(self.windows) != 1:
            return 0
        first = spans[0].row
        fits = (s.count == 1 and s.row == first + i and n >= self.sinks for i, (s, n) in enumerate(zip(spans, starts)))
        return next((i for i, fit in enumerate(fits) if not fit), len(spans))

    def _mask(self, visible: Tensor, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """An additive mask, with the ALiBi bias where the layer has one (then in float32, per head)."""
        if isinstance(self.encoding, Alibi):
            bias = self.encoding.bias(query_positions, key_positions)
            return bias.masked_fill(~visible[..., None, :, :], self.hidden).to(self.device)
        mask = torch.zeros(visible.shape, dtype=self.dtype)
        return mask.masked_fill_(~visible, self.hidden).to(self.device)

    def _span(self, span: Span, start: int, offset: int) -> SpanPlan:
        end = start + span.count
        query = torch.arange(start, end)
        windows, age = [], 0
        for size in self.windows:
            stored, arriving, leaving = window_ranges(start, end, self.sinks, age, size)
            held = torch.arange(stored.start, stored.stop) if size is None else seen_of_slots(stored, self.sinks, size)
            seen = torch.cat([held, torch.arange(arriving.start, arriving.stop)])
            distance = query[:, None] - seen[None, :]
            visible = distance >= age if size is None else (distance >= age) & (distance < age + size)
            kept = arriving if size is None else arriving[-size:]
            put = torch.arange(kept.start, kept.stop)
            put = (put if size is None else slot_of(put, self.sinks, size)).to(self.device)
            windows.append(WindowPlan(stored, arriving, leaving, len(stored), put, self._mask(visible, query, seen)))
            age += size or 0
        before, after = min(start, self.sinks), min(end, self.sinks)
        sink_angles = sink_query = sink_mask = None
        if after:
            sinks = torch.arange(after)
            seen_from = query if self.grows else sink_query_positions(query, self.entries, self.policy)
            sink_mask = self._mask(sinks[None, :] <= query[:, None], seen_from, sinks)
            if isinstance(self.encoding, Rotary):
                sink_angles = self.encoding.angles(sinks, self.device)
                sink_query = self.encoding.angles(seen_from, self.device)
        return SpanPlan(
            span.row, offset, start, span.count, tuple(windows), before, after, sink_angles, sink_query, sink_mask
        )

    def _decode(self, spans: list[Span], starts: list[int]) -> DecodePlan | None:
        """The batched read of such spans."""
        if not spans:
            return None
        first = spans[0].row
        size = self.windows[0]
        assert size is not None
        now = torch.tensor(starts)  # [rows]
        slots = self.sinks + slot_of(now, self.sinks, size)
        shift = torch.tensor([sink_shift(t, self.entries, self.policy) for t in starts])
        sinks = torch.arange(self.sinks) + shift[:, None]  # [rows, S]
        filled = (now + 1 - self.sinks).clamp(max=size)  # [rows]
        visible = torch.arange(self.sinks + size) < self.sinks + filled[:, None]  # [rows, S + W]
        keys = visible
        if isinstance(self.encoding, Alibi):
            held = torch.stack([self._slot_positions(t + 1, size) for t in starts])
            keys = torch.cat([sinks, held], dim=1)
        mask = self._mask(visible[:, None, :], now[:, None], keys)  # [rows, (Hq,) 1, S + W]
        mask = mask if mask.dim() == 4 else mask[:, None]
        angles = sink_angles = None
        if isinstance(self.encoding, Rotary):
            cos, sin = self.encoding.angles(now, self.device)
            angles = Angles(cos[:, None, None], sin[:, None, None])
            if self.sinks:
                cos, sin = self.encoding.angles(sinks, self.device)
                sink_angles = Angles(cos[:, None], sin[:, None])
        moved = self.sinks if isinstance(self.encoding, Rotary) else 0
        which = torch.tensor([0] * (moved + 1) + [1]).repeat(len(spans))
        row = torch.arange(first, first + len(spans)).repeat_interleave(moved + 2)
        slot = torch.cat(
            [torch.arange(moved).expand(len(spans), moved), slots[:, None], slots[:, None]], dim=1
        ).flatten()
        where = (which.to(self.device), row.to(self.device), slot.to(self.device))
        return DecodePlan(first, len(spans), where, angles, sink_angles, mask)

    def _slot_positions(self, end: int, size: int) -> Tensor:
        """[W] position of the entry in each slot when the stream has `end` tokens (0 where a slot is empty)."""
        stored, _, _ = window_ranges(end, end, self.sinks, 0, size)
        seen = seen_of_slots(stored, self.sinks, size)
        return torch.cat([seen, torch.zeros(size - len(seen), dtype=torch.int64)])
