"""Steps of any spans: the window as a band over [ring | chunk], the sinks by the clamped query, no mask in memory.

Three kernels and the merge.  `_turn` rotates the new keys and both copies of the queries (to the stream position, and
to the one from which sinks are seen), and files what becomes a sink.  `_read` is a grid of (tile of queries, key-value
head, span and part of the slots); a tile holds (token, query head of the group) pairs, which share each key and value.
Which key a query at t sees follows from two indices: a sink j if j <= t, any other j if 0 <= t - j < W.  `_keep`
overwrites the oldest slots, after everything was read.

New keys and values go through the ring's number format before they are read, so that results do not depend on how the
stream was cut.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.kernels.gpu.launch import block_of, launch, operand, pieces, power_of_two, rows_contiguous
from penstock.kernels.gpu.merge import merge
from penstock.kernels.gpu.store import Store
from penstock.kernels.gpu.tiles import fold, load_turned, store_as, store_partial

_TILES = {2: 64, 4: 16}  # (token, head) pairs that read together, by bytes of a number
_TOKENS = 16  # tokens that are turned and filed together


class Packed(NamedTuple):
    """N packed tokens of several spans, as the device needs to know them; all on the device but `longest`."""

    spans: Tensor  # [M, 4] int64: row, first packed token, tokens of the row before the step, count
    span_of: Tensor  # [N] int64, the span of each token
    cos: Tensor  # [N, R/2] float32, angles of the tokens
    sin: Tensor
    seen_cos: Tensor  # [N, R/2], angles of the queries as the sinks see them
    seen_sin: Tensor
    own_cos: Tensor  # [S, R/2], angles of the sinks at their own indices
    own_sin: Tensor
    longest: int  # tokens of the longest span


@triton.jit
def _turn(
    query: tl.tensor, key: tl.tensor, value: tl.tensor, turned: tl.tensor, seen: tl.tensor, fresh: tl.tensor,
    ring: tl.tensor, raw: tl.tensor, scales: tl.tensor, spans: tl.tensor, span_of: tl.tensor, cos: tl.tensor,
    sin: tl.tensor, seen_cos: tl.tensor, seen_sin: tl.tensor, q_head: tl.tensor, q_token: tl.tensor,
    k_head: tl.tensor, k_token: tl.tensor, v_head: tl.tensor, v_token: tl.tensor, fresh_pair: tl.tensor,
    pair: tl.tensor, row_stride: tl.tensor, head_stride: tl.tensor, raw_row: tl.tensor, raw_head: tl.tensor,
    count: tl.tensor,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    SINKS: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, SCALED: tl.constexpr,
) -> None:  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
    head = tl.program_id(1)
    real = token < count
    span = spans + 4 * tl.load(span_of + token, mask=real, other=0)
    row = tl.load(span)
    t = tl.load(span + 2) + token - tl.load(span + 1)
    channel = tl.arange(0, CHANNELS)[None, :]
    inside = real & (channel < WIDTH)
    key_scale = 1.0
    value_scale = 1.0
    if SCALED:
        key_scale = tl.load(scales + head)
        value_scale = tl.load(scales + HEADS // GROUP + head)
    angle = token * HALF

    for member in range(head * GROUP, head * GROUP + GROUP):
        asked = query + member * q_head + token * q_token
        place = (token * HEADS + member) * WIDTH + channel
        x = load_turned(asked, cos + angle, sin + angle, channel, inside, HALF, INTERLEAVED)
        tl.store(turned + place, x.to(turned.dtype.element_ty), mask=inside)
        if SINKS > 0:
            x = load_turned(asked, seen_cos + angle, seen_sin + angle, channel, inside, HALF, INTERLEAVED)
            tl.store(seen + place, x.to(seen.dtype.element_ty), mask=inside)

    source = key + head * k_head + token * k_token
    new = load_turned(source, cos + angle, sin + angle, channel, inside, HALF, INTERLEAVED)
    to = (token * (HEADS // GROUP) + head) * WIDTH + channel
    store_as(fresh + to, new.to(key.dtype.element_ty), inside, key_scale, SCALED)
    given = tl.load(value + head * v_head + token * v_token + channel, mask=inside, other=0.0)
    store_as(fresh + fresh_pair + to, given, inside, value_scale, SCALED)

    if SINKS > 0:
        sink = inside & (t < SINKS)
        own = tl.load(source + channel, mask=inside, other=0.0)
        tl.store(raw + row * raw_row + head * raw_head + t * WIDTH + channel, own, mask=sink)
        to = ring + row * row_stride + head * head_stride + t * WIDTH + channel
        store_as(to, own, sink, key_scale, SCALED)
        store_as(to + pair, given, sink, value_scale, SCALED)


@triton.jit
def _read(
    turned: tl.tensor, seen: tl.tensor, fresh: tl.tensor, ring: tl.tensor, raw: tl.tensor, scales: tl.tensor,
    spans: tl.tensor, own_cos: tl.tensor, own_sin: tl.tensor, outs: tl.tensor, lses: tl.tensor, fresh_pair: tl.tensor,
    pair: tl.tensor, row_stride: tl.tensor, head_stride: tl.tensor, raw_row: tl.tensor, raw_head: tl.tensor,
    each: tl.tensor, parts: tl.tensor, scale: tl.tensor, softcap: tl.tensor,
    HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, SINKS: tl.constexpr,
    WINDOW: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    CAPPED: tl.constexpr, SCALED: tl.constexpr,
) -> None:  # fmt: skip
    tile = tl.program_id(0)
    head = tl.program_id(1)
    part = tl.program_id(2) % parts
    span = spans + 4 * (tl.program_id(2) // parts)
    row = tl.load(span)
    offset = tl.load(span + 1)
    start = tl.load(span + 2)
    count = tl.load(span + 3).to(tl.int32)
    busy = tile * TILE < count * GROUP
    here = busy & (part == parts - 1)  # the last part also reads the sinks and the chunk

    lane = tile * TILE + tl.arange(0, TILE)
    token = lane // GROUP  # in the span
    real = token < count
    place = (offset + token) * HEADS + head * GROUP + lane % GROUP
    channel = tl.arange(0, CHANNELS)
    inside = channel[None, :] < WIDTH
    which = real[:, None] & inside
    query = tl.load(turned + place[:, None] * WIDTH + channel[None, :], mask=which, other=0.0)
    stored_scale = scale
    if SCALED:
        stored_scale = scale * tl.load(scales + head)
    top = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    out = tl.zeros([TILE, CHANNELS], tl.float32)

    # What the window held before the step.
    keys = ring + row * row_stride + head * head_stride
    arrived = tl.maximum(start - SINKS, 0)
    stored = tl.minimum(arrived, WINDOW).to(tl.int32)
    begin = part * each
    end = tl.minimum(begin + each, tl.where(busy, stored, 0))
    for base in range(begin, end, BLOCK):
        slot = base + tl.arange(0, BLOCK)
        index = SINKS + (arrived - 1 - slot) // WINDOW * WINDOW + slot  # seen index of what lies there
        distance = start + token[:, None] - index[None, :]
        visible = (slot < end)[None, :] & (distance < WINDOW)
        there = (slot < end)[:, None] & inside
        at = (SINKS + slot)[:, None] * WIDTH + channel[None, :]
        key = tl.load(keys + at, mask=there, other=0.0).to(query.dtype)
        value = tl.load(keys + pair + at, mask=there, other=0.0).to(query.dtype)
        top, total, out = fold(top, total, out, query, key, value, visible, stored_scale, softcap, CAPPED)

    # What arrives with the step, sinks not among it.
    last = tl.minimum((tile * TILE + TILE - 1) // GROUP, count - 1)
    begin = tl.maximum(tile * TILE // GROUP - WINDOW + 1, 0)
    begin = tl.maximum(begin, tl.maximum(SINKS - start, 0).to(tl.int32))
    end = tl.where(here, last + 1, begin)
    for base in range(begin, end, BLOCK):
        other = base + tl.arange(0, BLOCK)
        distance = token[:, None] - other[None, :]
        visible = (other < end)[None, :] & (distance >= 0) & (distance < WINDOW)
        there = (other < end)[:, None] & inside
        at = ((offset + other) * (HEADS // GROUP) + head)[:, None] * WIDTH + channel[None, :]
        key = tl.load(fresh + at, mask=there, other=0.0).to(query.dtype)
        value = tl.load(fresh + fresh_pair + at, mask=there, other=0.0).to(query.dtype)
        top, total, out = fold(top, total, out, query, key, value, visible, stored_scale, softcap, CAPPED)

    if SINKS > 0:
        query = tl.load(seen + place[:, None] * WIDTH + channel[None, :], mask=which, other=0.0)
        end = tl.where(here, tl.minimum(start + count, SINKS), 0).to(tl.int32)
        for base in range(0, end, 16):
            sink = base + tl.arange(0, 16)
            there = (sink < end)[:, None] & inside
            source = raw + row * raw_row + head * raw_head + sink[:, None] * WIDTH
            angle = sink[:, None] * HALF
            key = load_turned(source, own_cos + angle, own_sin + angle, channel[None, :], there, HALF, INTERLEAVED)
            value = tl.load(keys + pair + sink[:, None] * WIDTH + channel[None, :], mask=there, other=0.0)
            visible = (sink < end)[None, :] & (sink[None, :] <= start + token[:, None])
            top, total, out = fold(
                top, total, out, query, key.to(query.dtype), value.to(query.dtype), visible, scale, softcap, CAPPED
            )
    if SCALED:
        out = out * tl.load(scales + HEADS // GROUP + head)
    store_partial(outs, lses, place * parts + part, real, top, total, out, channel, WIDTH)


@triton.jit
def _keep(
    fresh: tl.tensor, ring: tl.tensor, spans: tl.tensor, span_of: tl.tensor, fresh_pair: tl.tensor, pair: tl.tensor,
    row_stride: tl.tensor, head_stride: tl.tensor, count: tl.tensor,
    TOKENS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, SINKS: tl.constexpr,
    WINDOW: tl.constexpr,
) -> None:  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
    head = tl.program_id(1)
    real = token < count
    span = spans + 4 * tl.load(span_of + token, mask=real, other=0)
    start = tl.load(span + 2)
    t = start + token - tl.load(span + 1)
    stays = real & (t >= SINKS) & (t >= start + tl.load(span + 3) - WINDOW)
    channel = tl.arange(0, CHANNELS)[None, :]
    inside = stays & (channel < WIDTH)
    slot = SINKS + tl.maximum(t - SINKS, 0) % WINDOW
    to = ring + tl.load(span) * row_stride + head * head_stride + slot * WIDTH + channel
    source = fresh + (token * KV_HEADS + head) * WIDTH + channel
    tl.store(to, tl.load(source, mask=inside, other=0.0), mask=inside)
    tl.store(to + pair, tl.load(source + fresh_pair, mask=inside, other=0.0), mask=inside)


def ingest(
    store: Store, query: Tensor, key: Tensor, value: Tensor, packed: Packed, *, scale: float,
    softcap: float | None = None, sink_logit: Tensor | None = None, wanted: int = 264,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Read and write one layer: query [1, Hq, N, D], key and value [1, Hkv, N, D], raw, packed as described.

    Returns (out [N, Hq, D], lse [N, Hq] float32).  The slots are split so that about `wanted` programs run.
    """
    query, key, value = (rows_contiguous(x) for x in (query, key, value))
    _, heads, count, width = query.shape
    ring, kv_heads = store.ring, store.kv_heads
    group, channels = heads // kv_heads, power_of_two(width)
    dtype = operand(query.dtype, query.device)
    turned = torch.empty(count, heads, width, dtype=dtype, device=query.device)
    seen = torch.empty_like(turned) if store.sinks else turned
    fresh = torch.empty(2, count, kv_heads, width, dtype=ring.dtype, device=query.device)
    raw = ring if store.raw_sinks is None else store.raw_sinks
    scales = store.scales if store.scales is not None else packed.cos
    common: dict[str, Any] = {
        "HEADS": heads, "GROUP": group, "WIDTH": width, "CHANNELS": channels, "SINKS": store.sinks,
        "HALF": store.half, "INTERLEAVED": store.interleaved, "SCALED": store.scales is not None,
    }  # fmt: skip
    tokens = (-(-count // _TOKENS), kv_heads)
    of_ring = (ring.stride(0), ring.stride(1), ring.stride(2))
    launch(
        _turn, tokens, query, key, value, turned, seen, fresh, ring, raw, scales, packed.spans, packed.span_of,
        packed.cos, packed.sin, packed.seen_cos, packed.seen_sin,
        query.stride(1), query.stride(2), key.stride(1), key.stride(2), value.stride(1), value.stride(2),
        fresh.stride(0), *of_ring, raw.stride(0), raw.stride(1), count, TOKENS=_TOKENS, **common,
    )  # fmt: skip
    tile = _TILES[query.dtype.itemsize]
    tiles, spans = -(-packed.longest * group // tile), len(packed.spans)
    block = block_of(channels, query.dtype)
    parts, each = pieces(store.window, tiles * kv_heads * spans, block, wanted)
    outs = torch.empty(count, heads, parts, width, dtype=torch.float32, device=query.device)
    lses = torch.empty(count, heads, parts, dtype=torch.float32, device=query.device)
    launch(
        _read, (tiles, kv_heads, spans * parts), turned, seen, fresh, ring, raw, scales, packed.spans, packed.own_cos,
        packed.own_sin, outs, lses, fresh.stride(0), *of_ring, raw.stride(0), raw.stride(1), each, parts, scale,
        softcap or 1.0, WINDOW=store.window, TILE=tile, BLOCK=block, CAPPED=softcap is not None, **common,
    )  # fmt: skip
    launch(
        _keep, tokens, fresh, ring, packed.spans, packed.span_of, fresh.stride(0), *of_ring, count,
        TOKENS=_TOKENS, KV_HEADS=kv_heads, WIDTH=width, CHANNELS=channels, SINKS=store.sinks, WINDOW=store.window,
    )  # fmt: skip
    return merge(outs, lses, query.dtype, sink_logit)
