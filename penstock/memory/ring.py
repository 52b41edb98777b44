"""The fast store of a group of layers: rings that overwrite one slot per new entry.

One tensor per layer, `[2, rows, Hkv, S + W, D]` (keys and values, so that a step writes both at once): sinks in the
first S slots, then the window, entry j in slot S + (j - S) % W.  Window keys are stored rotated to their stream
position and never touched again; sink keys are also kept raw: their distance to the newest entry may be clamped.

Two ways to read it, equal within rounding:

- `decode` (one token per row): the S sinks are rotated to the distance they should have and put into their slots, then
  one attention call reads the whole ring.  Fixed shapes, no branches: this is what gets compiled.
- `ingest` (any spans): the window as a band over [ring | chunk], the sinks as a partial of their own with the query
  rotated to the clamped position, merged.  The result does not depend on how the stream was cut.

What one window gives up enters the next one, already rotated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from penstock.core import Span
from penstock.memory.attend import Partial, learned_sink, merge, partial, partial_loops
from penstock.memory.cascade import Cascade
from penstock.memory.layout import Layer
from penstock.memory.plan import DecodePlan, Plan, Planner, SpanPlan, WindowPlan, slot_of
from penstock.memory.positions import Rotary

_FIRST_CAPACITY = 256  # slots a growing store starts with; it doubles


class RingGroup:
    """Layers that share a cascade, an encoding and head counts; all rows."""

    def __init__(
        self, layers: Sequence[Layer], cascade: Cascade, rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers, self.cascade, self.rows, self.dtype, self.device = tuple(layers), cascade, rows, dtype, device
        first = layers[0]
        self.encoding = first.encoding
        self.rotary = first.encoding if isinstance(first.encoding, Rotary) else None
        self.sinks = cascade.sinks
        self.sizes: tuple[int | None, ...] = cascade.windows or (None,)
        self.planner = Planner(self.sinks, self.sizes, cascade.positions, self.encoding, dtype, device)
        self.heads, self.width = first.kv_heads, first.key_width
        # rings[w][layer]: [2, rows, Hkv, (S if w == 0) + W, D].  Zeros, not empty: masked slots are read.
        self.rings = [
            [self._zeros(2, (self.sinks if w == 0 else 0) + (size or _FIRST_CAPACITY)) for _ in layers]
            for w, size in enumerate(self.sizes)
        ]
        self.raw_sinks = [self._zeros(1, self.sinks)[0] for _ in layers] if self.sinks else []

    def _zeros(self, pair: int, slots: int) -> Tensor:
        return torch.zeros(pair, self.rows, self.heads, slots, self.width, dtype=self.dtype, device=self.device)

    # -- size ---------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of the real storage."""
        tensors = [t for ring in self.rings for t in ring] + self.raw_sinks
        return sum(t.untyped_storage().nbytes() for t in tensors)

    # -- a step -------------------------------------------------------------------------------------------------

    def plan(self, spans: list[Span], starts: list[int]) -> Plan:
        """Host work of a step, once for all layers of the group."""
        if self.planner.grows:
            self._reserve(max(start + span.count for span, start in zip(spans, starts)))
        return self.planner.plan(spans, starts)

    def attend(
        self, index: int, query: Tensor, key: Tensor, value: Tensor, plan: Plan, *, scale: float,
        softcap: float | None = None, sink_logit: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Read and write layer `index` of the group.

        query [1, Hq, N, D], key and value [1, Hkv, N, D], raw, packed as planned.  Returns [1, N, Hq, D].
        """
        outs = []
        if plan.decode is not None:
            n = plan.decode.rows
            part = self._decode(index, query[:, :, :n], key[:, :, :n], value[:, :, :n], plan.decode, scale, softcap)
            if sink_logit is not None:
                part = learned_sink(part, sink_logit)
            batch = part.out.transpose(0, 2)  # [rows, Hq, 1, D] -> [1, Hq, rows, D]
            if not plan.spans:
                return batch.transpose(1, 2)
            outs.append(batch)
        raw_query, raw_key = query, key
        if self.rotary is not None:
            assert plan.angles is not None
            query, key = self.rotary.rotate(query, plan.angles), self.rotary.rotate(key, plan.angles)
        for span in plan.spans:
            cut = slice(span.offset, span.offset + span.count)
            part = self._ingest(
                index, query[:, :, cut], key[0, :, cut], value[0, :, cut], raw_query[:, :, cut], raw_key[0, :, cut],
                span, scale, softcap,
            )  # fmt: skip
            outs.append((part if sink_logit is None else learned_sink(part, sink_logit)).out)
        out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)
        return out.transpose(1, 2)

    def _decode(
        self, index: int, query: Tensor, key: Tensor, value: Tensor, plan: DecodePlan, scale: float,
        softcap: float | None,
    ) -> Partial:  # fmt: skip
        query, key, value = query.transpose(0, 2), key.transpose(0, 2), value.transpose(0, 2)  # [rows, H, 1, D]
        ring = self.rings[0][index]
        rows = slice(plan.first_row, plan.first_row + plan.rows)
        fresh = []
        if self.rotary is not None:
            assert plan.angles is not None
            query, key = self.rotary.rotate(query, plan.angles), self.rotary.rotate(key, plan.angles)
            if plan.sink_angles is not None:
                fresh.append(self.rotary.rotate(self.raw_sinks[index][rows], plan.sink_angles))
        entries = torch.cat([*fresh, key, value], dim=2).transpose(1, 2).flatten(0, 1)  # [rows * (S + 2), Hkv, D]
        which, row, slot = plan.where
        ring[which, row, :, slot] = entries
        return _read_one(query, ring[0, rows], ring[1, rows], scale, plan.mask, softcap)

    def _ingest(
        self, index: int, query: Tensor, key: Tensor, value: Tensor, raw_query: Tensor, raw_key: Tensor,
        span: SpanPlan, scale: float, softcap: float | None,
    ) -> Partial:  # fmt: skip
        parts = []
        fresh = span.sinks_after - span.sinks_before  # how many of the span's first tokens become sinks
        if fresh:
            where = slice(span.sinks_before, span.sinks_after)
            self.raw_sinks[index][span.row, :, where] = raw_key[:, :fresh]
            self.rings[0][index][:, span.row, :, where] = torch.stack((raw_key[:, :fresh], value[:, :fresh]))
        arriving = torch.stack((key, value))[:, :, fresh:]  # [2, Hkv, arriving, D]
        for w, window in enumerate(span.windows):
            part, arriving = self._window(index, w, query, arriving, window, span.row, scale, softcap)
            if part is not None:
                parts.append(part)
        if span.sinks_after:
            parts.append(self._sinks(index, query, raw_query, span, scale, softcap))
        return merge(parts)

    def _sinks(
        self, index: int, query: Tensor, raw_query: Tensor, span: SpanPlan, scale: float, softcap: float | None
    ) -> Partial:
        key = self.raw_sinks[index][span.row : span.row + 1, :, : span.sinks_after]
        value = self.rings[0][index][1, span.row : span.row + 1, :, : span.sinks_after]
        if self.rotary is not None:
            assert span.sink_query is not None
            assert span.sink_angles is not None
            query = self.rotary.rotate(raw_query, span.sink_query)
            key = self.rotary.rotate(key, span.sink_angles)
        return partial(query, key, value, scale=scale, mask=span.sink_mask, softcap=softcap)

    def _window(
        self, index: int, w: int, query: Tensor, arriving: Tensor, plan: WindowPlan, row: int, scale: float,
        softcap: float | None,
    ) -> tuple[Partial | None, Tensor]:  # fmt: skip
        """Read one window, write what arrives, return (partial, what leaves)."""
        size, ring = self.sizes[w], self.rings[w][index]
        base = self.sinks if w == 0 else 0
        if size is None:  # grows: append in place, read a prefix
            ring[:, row, :, plan.arriving.start : plan.arriving.stop] = arriving
            keys = ring[:, row, :, : plan.arriving.stop]
        else:
            keys = ring[:, row, :, base : base + plan.slots]
            keys = torch.cat((keys, arriving), dim=2) if plan.arriving else keys
        part = None
        if keys.shape[2]:
            part = partial(query, keys[0][None], keys[1][None], scale=scale, mask=plan.mask, softcap=softcap)
        if size is None:
            return part, arriving[:, :, :0]
        leaving = self._take(keys, plan, size) if w + 1 < len(self.sizes) else arriving[:, :, :0]
        keep = len(plan.put)
        if keep:
            slots = plan.put + base
            if self.rows == 1:  # on the whole tensor: a compiler then writes in place
                ring.index_copy_(3, slots, arriving[:, None, :, -keep:])
            else:
                ring[:, row].index_copy_(2, slots, arriving[:, :, -keep:])
        return part, leaving

    def _take(self, keys: Tensor, plan: WindowPlan, size: int) -> Tensor:
        """[2, Hkv, leaving, D] in stream order, out of [2, Hkv, slots + arriving, D]."""
        seen = torch.arange(plan.leaving.start, plan.leaving.stop)
        inside = slot_of(seen, self.sinks, size)
        fresh = plan.slots + seen - plan.arriving.start
        return keys[:, :, torch.where(seen < plan.arriving.start, inside, fresh).to(self.device)]

    def _reserve(self, entries: int) -> None:
        """Make a growing store hold `entries` (capacity doubles, so appending stays cheap on average)."""
        capacity = self.rings[0][0].shape[3]
        if entries <= capacity:
            return
        while capacity < entries:
            capacity *= 2
        for i, old in enumerate(self.rings[0]):
            new = self._zeros(2, capacity)
            new[:, :, :, : old.shape[3]] = old
            self.rings[0][i] = new


def _read_one(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor, softcap: float | None) -> Partial:
    """A single query per row: the heads of a group become the queries of one call, so that keys are loaded once."""
    rows, heads, _, width = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    grouped = query.reshape(rows, kv_heads, group, width)
    if mask.shape[1] == heads and heads != kv_heads:
        mask = mask.reshape(rows, kv_heads, group, mask.shape[-1])
    read = partial_loops if torch.compiler.is_dynamo_compiling() and key.device.type == "cpu" else partial
    part = read(grouped, key, value, scale=scale, mask=mask, softcap=softcap)
    return Partial(part.out.reshape(rows, heads, 1, -1), part.lse.reshape(rows, heads, 1))
