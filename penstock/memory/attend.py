"""Exact attention over a union of key sets: partial results and their merge.

A partial is `(out, lse)`: softmax attention over some of the keys, and the logarithm of its sum of exponentials.  Two
partials over disjoint keys merge into the partial over their union, exactly (the one-pass softmax of Milakov and
Gimelshein, arXiv:1805.02867).  An empty partial has lse = -inf (or so low that its weight underflows to zero).

This file knows nothing of streams: keys arrive rotated, visibility arrives as a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

_MANY = 32  # queries from which widening pays
MASKED = -1e30  # finite, so that a query that sees nothing gets weight zero in the merge, not NaN


def masked_value(dtype: torch.dtype) -> float:
    """The most negative usable mask value in a dtype."""
    return max(MASKED, torch.finfo(dtype).min / 2)


class Partial(NamedTuple):
    """Attention over some keys: `out` [B, Hq, C, Dv], `lse` [B, Hq, C] in float32."""

    out: Tensor
    lse: Tensor


def partial(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor | None = None, softcap: float | None = None
) -> Partial:
    """Softmax attention of query [B, Hq, C, D] over key [B, Hkv, T, D] and value [B, Hkv, T, Dv].

    Query head h reads key-value head h // (Hq // Hkv).  `mask` is added to the scaled scores and broadcasts to
    [B, Hq, C, T]; MASKED hides a key.  A mask in the dtype of the query may take a fused kernel; one in float32 is
    added in float32 (ALiBi biases need that in half precision).  `softcap` bounds scores to (-softcap, softcap) before
    the mask.
    """
    plain = softcap is None and key.shape[-1] == value.shape[-1] and key.shape[-2] > 0
    fusing = torch.compiler.is_dynamo_compiling() and query.shape[2] > 1  # a compiler fuses the softmax: twice as fast
    if plain and not fusing and query.device.type == "cpu" and (mask is None or mask.dtype == query.dtype):
        return _partial_cpu(query, key, value, scale, mask)
    return partial_math(query, key, value, scale=scale, mask=mask, softcap=softcap)


@cache
def emulates(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products in this dtype are emulated there."""
    if device.type != "cpu" or dtype is not torch.bfloat16:
        return False
    known = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    has_float32 = getattr(torch.cpu, "_is_avx2_supported", lambda: False)()  # else: ARM, which has its own products
    return bool(has_float32) and not any(check is not None and check() for check in known)


def _partial_cpu(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None) -> Partial:
    """PyTorch's blocked CPU kernel, which shares key-value heads without copies and returns the logsumexp.

    Many queries in a dtype whose products the processor emulates are computed in float32.
    """
    if query.shape[2] >= _MANY and emulates(query.dtype, query.device):
        wide = _partial_cpu(query.float(), key.float(), value.float(), scale, None if mask is None else mask.float())
        return Partial(wide.out.to(query.dtype), wide.lse)
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
        mask = mask.expand(query.shape[0], mask.shape[1], query.shape[2], key.shape[2])
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=mask, scale=scale
    )
    return Partial(out, lse)


def partial_math(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor | None = None, softcap: float | None = None
) -> Partial:
    """The same from matrix products: any device, any head widths, soft-capping; scores in float32 (or float64)."""
    batch, heads, count, width = query.shape
    kv_heads, stored = key.shape[1], key.shape[2]
    group = heads // kv_heads
    accumulate = torch.promote_types(query.dtype, torch.float32)
    # The query heads of one key-value head become rows of one product, so that each key is loaded once.
    grouped = query.reshape(batch, kv_heads, group * count, width)  # [B, Hkv, G*C, D]
    scores = torch.matmul(grouped, key.transpose(-1, -2)).to(accumulate) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.view(batch, heads, count, stored)
    if mask is not None:
        scores = scores + mask.to(accumulate)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.clamp_min(MASKED)[..., None])
    out = torch.matmul(weights.to(value.dtype).view(batch, kv_heads, group * count, stored), value)
    return Partial(out.view(batch, heads, count, value.shape[-1]), lse.float())


def partial_loops(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor | None = None, softcap: float | None = None
) -> Partial:
    """The same, written as products and sums for a compiler that fuses them into loops over the stored keys.

    For a few queries per key-value head (Hq == Hkv here: the heads of a group come as queries).  On a CPU this reads
    keys and values once, in their own dtype, splits the work evenly over threads, and takes half a kernel's time.
    """
    stored = key.shape[2]
    scores = (query[:, :, :, None].float() * key[:, :, None].float()).sum(-1) * scale  # [B, Hkv, C, T]
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask.float()
    top = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    # Sum in pieces, so that there are enough of them for all threads.
    pieces = next(n for n in (16, 8, 4, 2, 1) if stored % n == 0)
    shape = (*weights.shape[:3], pieces, stored // pieces, 1)
    cut = value.float().view(*value.shape[:2], 1, pieces, stored // pieces, value.shape[-1])
    out = (weights.view(shape) * cut).sum(4).sum(3) / total
    return Partial(out.to(query.dtype), (total.log() + top)[..., 0])


def empty(like: Partial) -> Partial:
    """The partial over no keys: merging it changes nothing."""
    return Partial(torch.zeros_like(like.out), torch.full_like(like.lse, float("-inf")))


def merge(partials: Sequence[Partial]) -> Partial:
    """The partial over the union of disjoint key sets.  Weights in float32, output in the dtype of the first."""
    if len(partials) == 1:
        return partials[0]
    lse = torch.stack([p.lse for p in partials])  # [P, B, Hq, C]
    total = torch.logsumexp(lse, dim=0)
    weights = torch.exp(lse - total.clamp_min(MASKED))
    out = partials[0].out * weights[0][..., None]
    for part, weight in zip(partials[1:], weights[1:]):
        out = out + part.out * weight[..., None]
    return Partial(out.to(partials[0].out.dtype), total)


def learned_sink(part: Partial, logit: Tensor) -> Partial:
    """Merge with a key of the given logit per query head [Hq] and value zero (the sinks that gpt-oss learned)."""
    logit = logit.to(part.lse.dtype).view(1, -1, 1)
    keep = torch.sigmoid(part.lse - logit)  # = exp(lse) / (exp(lse) + exp(logit))
    return Partial((part.out * keep[..., None]).to(part.out.dtype), torch.logaddexp(part.lse, logit))
