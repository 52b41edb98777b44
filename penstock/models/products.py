"""Matrix products of long steps in float32 where the processor has no bfloat16 products.

Such a processor (AVX-512 without BF16, AVX2) emulates products of bfloat16 matrices four times slower than it does
those of float32 (57 against 235 GFLOP/s on two cores of a Xeon, 256 rows).  For a step of many tokens, widening the
weights as they are read costs little beside that.  A step of one token reads weights at the speed of memory either way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from penstock.memory.attend import emulates

ROWS = 32  # tokens in a step from which widening pays


class Wide(TorchFunctionMode):
    """Inside, linear layers over many rows multiply in float32 and give their own dtype."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        if func is torch.nn.functional.linear and not kwargs and _is_long(args[0], args[1]):
            bias = args[2] if len(args) > 2 else None
            wide = None if bias is None else bias.float()
            return torch.nn.functional.linear(args[0].float(), args[1].float(), wide).to(args[0].dtype)
        return func(*args, **(kwargs or {}))


def _is_long(x: Tensor, weight: Tensor) -> bool:
    return x.dtype is torch.bfloat16 and weight.dtype is torch.bfloat16 and x.numel() >= ROWS * x.shape[-1]


class Unwatched:
    """A step that reads the memory outside of the mode, which would look at each of its many small operations."""

    def __init__(self, step: Any) -> None:
        self._step = step

    def attend(self, *args: Any, **kwargs: Any) -> Tensor:
        """As Step.attend."""
        with torch._C.DisableTorchFunction():
            out: Tensor = self._step.attend(*args, **kwargs)
        return out


def products(dtype: torch.dtype, device: torch.device, rows: int) -> AbstractContextManager[Any]:
    """The context to run a step of `rows` tokens in."""
    return Wide() if rows >= ROWS and emulates(dtype, device) else contextlib.nullcontext()
