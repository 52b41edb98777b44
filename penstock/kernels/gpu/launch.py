"""Launching kernels, with a place to watch: a test that records a step sees kernels as well as operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Launch = Callable[[], None]
watchers: list[Callable[[Launch], None]] = []  # the last one runs each launch in our place


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run a kernel over a grid; nothing to do is nothing launched."""
    if 0 in grid:
        return

    first = next(x for x in arguments if isinstance(x, Tensor))

    def run() -> None:
        with torch.cuda.device_of(first):  # kernels go to the current device
            kernel[grid](*arguments, **options)

    if watchers:
        watchers[-1](run)
    else:
        run()


def rows_contiguous(x: Tensor) -> Tensor:
    """The tensor, copied only if its last axis is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def power_of_two(n: int, least: int = 16) -> int:
    """The next power of two, at least `least`: tiles have such sizes."""
    return max(least, 1 << (n - 1).bit_length())


def block_of(channels: int, dtype: torch.dtype) -> int:
    """Keys that are read together: what fits into shared memory three times over."""
    return 64 if channels * dtype.itemsize <= 256 else 32


def operand(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The number format of matrix products: that of the queries, but Triton's interpreter has no bfloat16 products."""
    return torch.float32 if device.type == "cpu" and dtype == torch.bfloat16 else dtype


def pieces(slots: int, programs: int, block: int, wanted: int) -> tuple[int, int]:
    """Into how many parts to split `slots` when `programs` work beside each other anyway: (parts, slots of each).

    Enough parts that `wanted` programs run; each is a multiple of `block` slots.
    """
    blocks = max(1, -(-slots // block))
    parts = max(1, min(blocks, -(-wanted // max(1, programs))))
    each = -(-blocks // parts) * block
    return -(-max(slots, 1) // each), each
