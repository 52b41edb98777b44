"""A single token of each of several rows: turn, write the slot, read the whole ring.

Three kernels.  `_place` rotates queries, keys and the row's sinks, and overwrites one slot.  `_read` is a grid of
(token, key-value head, part of the slots): the query heads of a group share each key and value that is loaded, and
each part leaves (out, logsumexp).  `merge` joins the parts exactly (the split of Flash-Decoding).

Everything that changes from step to step is read from tensors on the device, so the kernels can be recorded once:
the slot follows from the position, and the slots that hold something are the first S + min(t + 1 - S, W).
A row number below zero is a place that is not used in this step: nothing is written, and zeros come back.
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


class Singles(NamedTuple):
    """n tokens of different rows whose sinks are complete, as the device needs to know them."""

    rows: Tensor  # [n] int64, -1 for a place that is not used
    positions: Tensor  # [n] int64, the token's index in its stream
    cos: Tensor  # [n, R/2] float32, the angles of the token
    sin: Tensor
    sink_cos: Tensor  # [n, S, R/2], the sinks moved to the distance that the policy gives them
    sink_sin: Tensor


@triton.jit
def _place(
    query: tl.tensor, key: tl.tensor, value: tl.tensor, turned: tl.tensor, ring: tl.tensor, raw: tl.tensor,
    scales: tl.tensor, rows: tl.tensor, positions: tl.tensor, cos: tl.tensor, sin: tl.tensor, sink_cos: tl.tensor,
    sink_sin: tl.tensor, q_head: tl.tensor, q_token: tl.tensor, k_head: tl.tensor, k_token: tl.tensor,
    v_head: tl.tensor, v_token: tl.tensor, pair: tl.tensor, row_stride: tl.tensor, head_stride: tl.tensor,
    raw_row: tl.tensor, raw_head: tl.tensor,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    SINKS: tl.constexpr, WINDOW: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, SCALED: tl.constexpr,
) -> None:  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = tl.load(rows + place)
    used = row >= 0
    t = tl.load(positions + place)
    channel = tl.arange(0, CHANNELS)[None, :]
    inside = used & (channel < WIDTH)
    key_scale = 1.0
    value_scale = 1.0
    if SCALED:
        key_scale = tl.load(scales + head)
        value_scale = tl.load(scales + HEADS // GROUP + head)

    # The query heads of this key-value head.
    one = tl.arange(0, GROUPS)[:, None]
    member = head * GROUP + one
    which = inside & (one < GROUP)
    angle = place * HALF + one * 0
    source = query + member * q_head + place * q_token
    x = load_turned(source, cos + angle, sin + angle, channel, which, HALF, INTERLEAVED)
    tl.store(turned + (place * HEADS + member) * WIDTH + channel, x.to(turned.dtype.element_ty), mask=which)

    # The new key and value into their slot.
    alone = tl.arange(0, 1)[:, None]
    slot = SINKS + (t - SINKS) % WINDOW
    to = ring + row * row_stride + head * head_stride + slot * WIDTH + channel
    angle = place * HALF + alone
    source = key + head * k_head + place * k_token + alone
    new = load_turned(source, cos + angle, sin + angle, channel, inside, HALF, INTERLEAVED)
    store_as(to, new.to(key.dtype.element_ty), inside, key_scale, SCALED)
    fresh = tl.load(value + head * v_head + place * v_token + channel, mask=inside, other=0.0)
    store_as(to + pair, fresh, inside, value_scale, SCALED)

    # The sinks, from raw copies to where this query should find them.
    for base in range(0, SINKS, 16):
        sink = base + tl.arange(0, 16)[:, None]
        held = inside & (sink < SINKS)
        turn = (place * SINKS + sink) * HALF
        copy = raw + row * raw_row + head * raw_head + sink * WIDTH
        moved = load_turned(copy, sink_cos + turn, sink_sin + turn, channel, held, HALF, INTERLEAVED)
        back = ring + row * row_stride + head * head_stride + sink * WIDTH + channel
        store_as(back, moved.to(key.dtype.element_ty), held, key_scale, SCALED)


@triton.jit
def _read(
    turned: tl.tensor, ring: tl.tensor, scales: tl.tensor, rows: tl.tensor, positions: tl.tensor, outs: tl.tensor,
    lses: tl.tensor, pair: tl.tensor, row_stride: tl.tensor, head_stride: tl.tensor, each: tl.tensor,
    scale: tl.tensor, softcap: tl.tensor,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    SINKS: tl.constexpr, WINDOW: tl.constexpr, BLOCK: tl.constexpr, CAPPED: tl.constexpr, SCALED: tl.constexpr,
) -> None:  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    part = tl.program_id(2)
    row = tl.load(rows + place)
    t = tl.load(positions + place)
    filled = (SINKS + tl.minimum(t + 1 - SINKS, WINDOW)).to(tl.int32)
    begin = part * each
    end = tl.minimum(begin + each, tl.where(row >= 0, filled, 0))

    one = tl.arange(0, GROUPS)
    member = head * GROUP + one
    channel = tl.arange(0, CHANNELS)
    inside = channel[None, :] < WIDTH
    which = (one < GROUP)[:, None] & inside
    query = tl.load(turned + (place * HEADS + member)[:, None] * WIDTH + channel[None, :], mask=which, other=0.0)
    if SCALED:
        scale = scale * tl.load(scales + head)

    top = tl.full([GROUPS], float("-inf"), tl.float32)
    total = tl.zeros([GROUPS], tl.float32)
    out = tl.zeros([GROUPS, CHANNELS], tl.float32)
    keys = ring + row * row_stride + head * head_stride
    for base in range(begin, end, BLOCK):
        slot = base + tl.arange(0, BLOCK)
        there = (slot < end)[:, None] & inside
        at = slot[:, None] * WIDTH + channel[None, :]
        key = tl.load(keys + at, mask=there, other=0.0).to(query.dtype)
        value = tl.load(keys + pair + at, mask=there, other=0.0).to(query.dtype)
        top, total, out = fold(top, total, out, query, key, value, (slot < end)[None, :], scale, softcap, CAPPED)
    if SCALED:
        out = out * tl.load(scales + HEADS // GROUP + head)
    spot = (place * HEADS + member) * tl.num_programs(2) + part
    store_partial(outs, lses, spot, one < GROUP, top, total, out, channel, WIDTH)


def decode(
    store: Store, query: Tensor, key: Tensor, value: Tensor, singles: Singles, *, scale: float,
    softcap: float | None = None, sink_logit: Tensor | None = None, wanted: int = 264,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Write and read one layer: query [1, Hq, n, D], key and value [1, Hkv, n, D], raw.

    Returns (out [n, Hq, D], lse [n, Hq] float32).  The slots are split so that about `wanted` programs run.
    """
    query, key, value = (rows_contiguous(x) for x in (query, key, value))
    _, heads, count, width = query.shape
    ring, kv_heads = store.ring, store.kv_heads
    group, channels = heads // kv_heads, power_of_two(width)
    dtype = operand(query.dtype, query.device)
    turned = torch.empty(count, heads, width, dtype=dtype, device=query.device)
    raw = ring if store.raw_sinks is None else store.raw_sinks
    scaled = store.scales is not None
    scales = store.scales if store.scales is not None else singles.cos
    common: dict[str, Any] = {
        "HEADS": heads, "GROUP": group, "GROUPS": power_of_two(group), "WIDTH": width, "CHANNELS": channels,
        "SINKS": store.sinks, "WINDOW": store.window, "SCALED": scaled,
    }  # fmt: skip
    launch(
        _place, (count, kv_heads), query, key, value, turned, ring, raw, scales, *singles,
        query.stride(1), query.stride(2), key.stride(1), key.stride(2), value.stride(1), value.stride(2),
        ring.stride(0), ring.stride(1), ring.stride(2), raw.stride(0), raw.stride(1),
        HALF=store.half, INTERLEAVED=store.interleaved, **common,
    )  # fmt: skip
    block = block_of(channels, query.dtype)
    parts, each = pieces(store.sinks + store.window, count * kv_heads, block, wanted)
    outs = torch.empty(count, heads, parts, width, dtype=torch.float32, device=query.device)
    lses = torch.empty(count, heads, parts, dtype=torch.float32, device=query.device)
    launch(
        _read, (count, kv_heads, parts), turned, ring, scales, singles.rows, singles.positions, outs, lses,
        ring.stride(0), ring.stride(1), ring.stride(2), each, scale, softcap or 1.0,
        BLOCK=block, CAPPED=softcap is not None, num_stages=3, **common,
    )  # fmt: skip
    return merge(outs, lses, query.dtype, sink_logit)
