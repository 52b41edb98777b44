"""Which pages of an archive are worth reading: bounds on what a query can find in each.

A page is summed up by the channel-wise least and greatest keys of each of its pieces.  The score of a page,

    the largest over its pieces of  sum over channels of max(q_c * low_c, q_c * high_c),

bounds every q . k inside it (LServe, arXiv:2502.14866).  Since max(q low, q high) is q+ high + q- low, a piece costs
two matrix products, and the query heads of a group share each bound that is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.kernels.gpu.launch import launch, operand, power_of_two


@triton.jit
def _score(
    query: tl.tensor, summary: tl.tensor, scores: tl.tensor, count: tl.tensor, queries: tl.tensor,
    pages_stride: tl.tensor, heads_stride: tl.tensor,
    PIECES: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, PAGES: tl.constexpr,
) -> None:  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    page = tl.program_id(0).to(tl.int64) * PAGES + tl.arange(0, PAGES)
    asked = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES)
    channel = tl.arange(0, CHANNELS)
    inside = channel[None, :] < WIDTH
    there = (page < count)[:, None] & inside
    which = (asked < queries)[:, None] & inside
    q = tl.load(query + (head * queries + asked)[:, None] * WIDTH + channel[None, :], mask=which, other=0.0)
    zero = tl.zeros_like(q)
    above = tl.where(q > 0, q, zero)
    below = tl.where(q > 0, zero, q)
    at = summary + page[:, None] * pages_stride + head * heads_stride + channel[None, :]
    best = tl.full([QUERIES, PAGES], float("-inf"), tl.float32)
    for piece in range(PIECES):
        low = tl.load(at + 2 * piece * WIDTH, mask=there, other=0.0).to(q.dtype)
        high = tl.load(at + (2 * piece + 1) * WIDTH, mask=there, other=0.0).to(q.dtype)
        bound = tl.dot(above, tl.trans(high), input_precision="ieee")
        bound += tl.dot(below, tl.trans(low), input_precision="ieee")
        best = tl.maximum(best, bound)
    to = scores + (head * queries + asked)[:, None] * count + page[None, :]
    tl.store(to, best, mask=(asked < queries)[:, None] & (page < count)[None, :])


def page_scores(summary: Tensor, query: Tensor) -> Tensor:
    """[H, g, C, n] float32 of queries [H, g, C, D] with summaries [n, H, 2 * pieces, D] (low, high, low, ...)."""
    count, heads, rows, width = summary.shape
    summary, query = summary if summary.stride()[2:] == (width, 1) else summary.contiguous(), query.contiguous()
    query = query.to(operand(query.dtype, query.device))
    queries = query.shape[1] * query.shape[2]
    scores = torch.empty(*query.shape[:3], count, dtype=torch.float32, device=query.device)
    tile = min(64, power_of_two(queries))
    pages = 64
    options: dict[str, Any] = {"QUERIES": tile, "PAGES": pages, "WIDTH": width, "CHANNELS": power_of_two(width)}
    launch(
        _score, (-(-count // pages), heads, -(-queries // tile)), query, summary, scores, count, queries,
        summary.stride(0), summary.stride(1), PIECES=rows // 2, **options,
    )  # fmt: skip
    return scores
