"""Streams of frames: keys, values and queries that a test gives as blocks, of kind vision, into one layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from penstock.core import Kind, Phase, Span
from penstock.memory import Cascade, Geometry, Layer, Memory
from penstock.memory.flow import Lane
from penstock.memory.positions import Alibi, Rotary

HEADS, GROUP, WIDTH = 2, 2, 8
ROTARY = Rotary(10000.0 ** -(torch.arange(0, WIDTH, 2).double() / WIDTH))
ALIBI = Alibi(2.0 ** -torch.arange(1, HEADS * GROUP + 1).float())


def memory(cascade: Cascade, naive: bool = False, encoding: Rotary | Alibi | None = ROTARY) -> Memory:
    """One layer of two key-value heads, two query heads each."""
    layer = Layer(0, HEADS * GROUP, HEADS, WIDTH, WIDTH, encoding)
    return Memory(Geometry((layer,), torch.float32, torch.device("cpu")), [cascade], naive=naive)


def blocks(count: int, frame: int, seed: int = 0) -> Tensor:
    """[H, count * frame, D] random keys."""
    return torch.randn(HEADS, count * frame, WIDTH, generator=torch.Generator().manual_seed(seed))


def feed(
    where: Memory, key: Tensor, value: Tensor | None = None, query: Tensor | None = None, chunk: int | None = None,
    kind: int = Kind.VISION, phase: Phase = Phase.INGEST,
) -> Tensor:  # fmt: skip
    """Keys [H, N, D] in steps of `chunk`: what the layer answers, [N, Hq, D].  Queries are the keys if not given."""
    value = key if value is None else value
    query = key.repeat_interleave(GROUP, 0) if query is None else query
    out, size = [], chunk or key.shape[1]
    for i in range(0, key.shape[1], size):
        q, k, v = (x[None, :, i : i + size] for x in (query, key, value))
        count = k.shape[2]
        with where.step([Span(0, count)], phase, torch.full((count,), kind, dtype=torch.uint8)) as step:
            out.append(step.attend(0, q, k, v, scale=WIDTH**-0.5)[0])
    return torch.cat(out)


def lane(where: Memory) -> Lane:
    """The layer's lane."""
    found: Lane = where.groups[0].lanes[0][0][0]
    return found


def state(where: Memory, part: int) -> Any:
    """The state of a part."""
    return lane(where).states[part]
