"""Floating point as it is, or in fewer bits: the codec that other codecs are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.memory.codec.base import Codec, Field, Piece, finished, rounding


@dataclass(frozen=True)
class Floats(Codec):
    """Numbers of a dtype; exact for numbers that came in it."""

    dtype: torch.dtype = torch.float16

    def fields(self, heads: int, entries: int, width: int) -> dict[str, Field]:
        return {"numbers": Field((heads, entries, width), self.dtype, 1)}

    def encode(self, x: Tensor, like: Mapping[str, Tensor] | None = None) -> Piece:
        return {"numbers": finished(self.prepared(x), self.dtype).clone(memory_format=torch.contiguous_format)}

    def decode(self, coded: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        return finished(coded["numbers"], dtype)

    def bound(self, coded: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
        """The rounding of one dtype, then of the other; for numbers in the range of both."""
        size = coded["numbers"].float().abs()
        return rounding(size, self.dtype) * 2 + rounding(size, dtype)
