"""Attention through the kernels as one opaque operator, so that a compiler can fuse all that stands around it.

The compiler sees queries, keys and values going in and an output coming out.  Rings and tables it does not see: nobody
else in a step reads or writes them, and the operators of the layers follow each other through their inputs.  Which step
is meant is a matter of the thread that runs it, so one compiled model serves every memory of the same shape.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_now = threading.local()


@contextmanager
def meant(step: Any) -> Iterator[None]:
    """Inside, the operator reads through this step (steps.py: KernelStep)."""
    before, _now.step = getattr(_now, "step", None), step
    try:
        yield
    finally:
        _now.step = before


def _attend(
    query: Tensor, key: Tensor, value: Tensor, sink_logit: Tensor | None, layer: int, scale: float,
    softcap: float | None,
) -> Tensor:  # fmt: skip
    """[1, N, Hq, D] of query [1, Hq, N, D], key and value [1, Hkv, N, D]."""
    out: Tensor = _now.step.read(layer, query, key, value, scale=scale, softcap=softcap, sink_logit=sink_logit)
    return out


def _shape(
    query: Tensor, key: Tensor, value: Tensor, sink_logit: Tensor | None, layer: int, scale: float,
    softcap: float | None,
) -> Tensor:  # fmt: skip
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


attend = torch.library.custom_op("penstock::attend", _attend, mutates_args=())
attend.register_fake(_shape)
