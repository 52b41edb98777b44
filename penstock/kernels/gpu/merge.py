"""Partials of the parts of a ring become one result: exactly, because each carries its logsumexp (memory/attend.py)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.kernels.gpu.launch import launch, power_of_two

_ELEMENTS = 4096  # of partials that one program reads


@triton.jit
def _merge(
    outs: tl.tensor, lses: tl.tensor, logits: tl.tensor, out: tl.tensor, lse: tl.tensor, queries: tl.tensor,
    parts: tl.tensor,
    QUERIES: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, PARTS: tl.constexpr,
    LEARNED: tl.constexpr,
) -> None:  # fmt: skip
    query = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)  # heads of tokens
    part = tl.arange(0, PARTS)
    channel = tl.arange(0, CHANNELS)
    real = query < queries
    there = real[:, None] & (part < parts)[None, :]
    place = query[:, None] * parts + part[None, :]
    each = tl.load(lses + place, mask=there, other=float("-inf"))
    top = tl.max(each, 1)
    if LEARNED:
        sink = tl.load(logits + query % HEADS).to(tl.float32)
        top = tl.maximum(top, sink)
    top = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.exp(each - top[:, None])
    total = tl.sum(weight, 1)
    if LEARNED:
        total += tl.exp(sink - top)  # a key of this logit with value zero
    inside = there[:, :, None] & (channel < WIDTH)[None, None, :]
    found = tl.load(outs + place[:, :, None] * WIDTH + channel[None, None, :], mask=inside, other=0.0)
    some = tl.where(total > 0.0, total, 1.0)
    result = tl.sum(found * weight[:, :, None], 1) / some[:, None]
    inside = real[:, None] & (channel < WIDTH)[None, :]
    tl.store(out + query[:, None] * WIDTH + channel[None, :], result.to(out.dtype.element_ty), mask=inside)
    tl.store(lse + query, tl.where(total > 0.0, top + tl.log(some), float("-inf")), mask=real)


def merge(outs: Tensor, lses: Tensor, dtype: torch.dtype, sink_logit: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Partials outs [N, Hq, parts, D] and lses [N, Hq, parts] to (out [N, Hq, D] in dtype, lse [N, Hq] float32).

    `sink_logit` [Hq] adds a key of that logit and value zero.
    """
    count, heads, parts, width = outs.shape
    out = torch.empty(count, heads, width, dtype=dtype, device=outs.device)
    lse = torch.empty(count, heads, dtype=torch.float32, device=outs.device)
    channels, padded = power_of_two(width), power_of_two(parts, 2)
    tile = min(64, max(1, _ELEMENTS // (channels * padded)))
    launch(
        _merge, (-(-count * heads // tile),), outs, lses, lses if sink_logit is None else sink_logit, out, lse,
        count * heads, parts, QUERIES=tile, HEADS=heads, WIDTH=width, CHANNELS=channels, PARTS=padded,
        LEARNED=sink_logit is not None,
    )  # fmt: skip
    return out, lse
