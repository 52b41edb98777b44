"""The ring of one layer as kernels see it, in the number formats they can read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FORMATS = (torch.float32, torch.float16, torch.bfloat16, FP8)
LARGEST = 448.0  # of e4m3


@dataclass(frozen=True)
class Store:
    """Keys and values [2, rows, Hkv, S + W, D] of one layer, entry j in slot S + (j - S) % W (memory/ring.py).

    `raw_sinks` [rows, Hkv, S, D] holds the sink keys before rotation, None without sinks.  A rotary embedding of `half`
    frequencies turns the first 2 * half channels.  A ring in e4m3 has `scales` [2, Hkv] float32: a stored number times
    its head's scale is the key or value; what lies beyond 448 scales is cut off.
    """

    ring: Tensor
    raw_sinks: Tensor | None
    sinks: int
    window: int
    half: int
    interleaved: bool
    scales: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.ring.dtype in FORMATS, self.ring.dtype
        assert (self.scales is not None) == (self.ring.dtype == FP8), "a ring in e4m3 has scales, and no other has"
        assert self.ring.shape[3] == self.sinks + self.window, tuple(self.ring.shape)
        assert (self.raw_sinks is not None) == (self.sinks > 0), "raw sinks go with sinks"

    @property
    def kv_heads(self) -> int:
        return self.ring.shape[2]

    @property
    def width(self) -> int:
        return self.ring.shape[4]


def scales_for(keys: Tensor, values: Tensor, margin: float = 2.0) -> Tensor:
    """[2, Hkv] float32 for a ring in e4m3, from keys and values [..., Hkv, T, D] like those it will hold.

    The largest magnitude of each head, times `margin`, becomes the largest number that can be stored.
    """
    largest = torch.stack([x.abs().float().movedim(-3, 0).flatten(1).amax(1) for x in (keys, values)])
    return (largest * margin / LARGEST).clamp_min(1e-12)
