"""Fewer entries for many: means of neighbours, and what a frame shows as a whole.

Everything here works on raw keys, because the mean of rotated keys mixes phases.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from penstock.errors import BudgetError, UsageError
from penstock.memory.entries import Entries


def pooled(entries: Entries, size: int) -> Entries:
    """Groups of `size` neighbours as one entry each: weighted means of raw keys and values; index, kind of the newest.

    An entry counts as many times as it stands for; the logarithm of the sum is the bias of the new one, so that a group
    of equal entries is read as before.
    """
    if entries.turned:
        raise ValueError("rotated keys cannot be pooled")
    if len(entries) % size:
        raise ValueError(f"{len(entries)} entries cannot be pooled in groups of {size}")
    entries = entries.with_bias()
    if size == 1:
        return entries
    bias = entries.bias
    assert bias is not None
    groups = bias.unflatten(1, (-1, size))  # [H, n, size]
    weight = groups.softmax(-1)[..., None]

    def mean(x: Tensor) -> Tensor:
        return (x.unflatten(1, (-1, size)).float() * weight).sum(2).to(x.dtype)

    newest = slice(size - 1, None, size)
    return replace(
        entries, key=mean(entries.key), value=mean(entries.value), bias=groups.logsumexp(-1),
        seen=entries.seen[:, newest].clone(), kind=entries.kind[:, newest].clone(),
        place=None if entries.place is None else entries.place[:, newest].clone(),
    )  # fmt: skip


def directions(key: Tensor) -> Tensor:
    """Raw keys [H, T, D] as unit vectors per head, in float32."""
    return torch.nn.functional.normalize(key.float(), dim=-1)


def feature(key: Tensor) -> Tensor:
    """[H * D] float32 of length 1: what a frame with raw keys [H, T, D] shows as a whole, their mean."""
    return torch.nn.functional.normalize(key.float().mean(1).flatten(), dim=0)


def frame_size(name: str, budget: int | None, frame: int, frames: int, least: int) -> int:
    """Entries of a frame: as asked, or (0) the power of two of which the budget holds `frames`, at least `least`."""
    if budget is None:
        raise BudgetError(f"{name} needs a budget: give entries (4096) or bytes (64MiB).")
    if not frame:
        frame = 4
        while frame < 64 and 2 * frame * frames <= budget:
            frame *= 2
    if frame not in (4, 8, 16, 32, 64):
        raise UsageError(f"a frame of {frame} tokens is not possible in {name}: give 4, 8, 16, 32 or 64.")
    if frame * least > budget:
        raise BudgetError(
            f"{least} frames of {frame} entries do not fit into a budget of {budget}: "
            f"give at least {frame * least}, or smaller frames ({name}:frame=4)."
        )
    return frame


__all__ = ["directions", "feature", "frame_size", "pooled"]
