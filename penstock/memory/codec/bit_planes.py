"""Bit planes: bipolar integers, one tensor per bit, read at any precision.  arXiv:2508.19087

Every bit is worth plus or minus a power of two: an n-bit code is the odd integer sum((2 * bit[i] - 1) * 2**i), from
-(2**n - 1) to 2**n - 1, without a sign bit.  A signed integer q of scale s and zero z is 2 * q + 1 of scale s / 2 and
zero z - s / 2.  What is left when low planes are not read is the middle of what they could have said: the reading gets
coarser, never shifted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.errors import CompositionError
from penstock.memory.codec.base import Field, Piece, finished, rounding
from penstock.memory.codec.integers import Grouped


@dataclass(frozen=True)
class BitPlanes(Grouped):
    """`count` planes with a centre and half a step per group: x = centre + half * odd integer.

    A piece has the planes `plane0` (lowest) to `plane{count - 1}`, eight channels in a byte.  `read` of them (the
    highest; 0: all) are read, unless decode is told another number.
    """

    count: int = 4
    read: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.count <= 8:
            raise CompositionError(f"a code has 1 to 8 bit planes, got {self.count}: 4 are usual.")
        self._planes(self.read or None)

    @property
    def largest(self) -> int:
        """The largest odd integer."""
        return (1 << self.count) - 1

    def fields(self, heads: int, entries: int, width: int) -> dict[str, Field]:
        if width % 8:
            raise CompositionError(f"{width} channels do not fill whole bytes of a bit plane: choose an integer codec.")
        shared = self.shared_field(heads, entries, width)
        plane = Field((heads, entries, width // 8), torch.uint8, 1)
        return {**{f"plane{i}": plane for i in range(self.count)}, "half": shared, "centre": shared}

    def encode(self, x: Tensor, like: Mapping[str, Tensor] | None = None) -> Piece:
        self.fields(1, self.group, x.shape[-1])
        blocks = self.blocks(self.prepared(x))
        low, high = blocks.amin(self.axis), blocks.amax(self.axis)
        centre = self.to_shared(low / 2 + high / 2, up=True)
        reach = torch.maximum(high - centre.float(), centre.float() - low)
        half = self.to_shared(reach / self.largest, up=True)
        step = torch.where(half > 0, half, 1).float().unsqueeze(self.axis)
        odd = (blocks - centre.float().unsqueeze(self.axis)) / step
        codes = ((odd + self.largest) / 2).round_().clamp_(0, self.largest)
        codes = self.flat(codes, x.shape[-1]).to(torch.uint8)
        return {**{f"plane{i}": pack_bits(codes >> i & 1) for i in range(self.count)}, "half": half, "centre": centre}

    def decode(self, coded: Mapping[str, Tensor], dtype: torch.dtype, planes: int | None = None) -> Tensor:
        """As for every codec; `planes` reads the highest ones only."""
        left = self.count - self._planes(planes)
        codes = unpack_bits(coded[f"plane{left}"]) << left
        for i in range(left + 1, self.count):
            codes |= unpack_bits(coded[f"plane{i}"]) << i
        # The sum of (2 * bit - 1) * 2**i over the planes read.
        odd = codes.float().mul_(2).sub_((1 << self.count) - (1 << left))
        half, centre = (coded[name].float().unsqueeze(self.axis) for name in ("half", "centre"))
        return finished(self.flat(self.blocks(odd).mul(half).add_(centre), odd.shape[-1]), dtype)

    def bound(
        self, coded: Mapping[str, Tensor], dtype: torch.dtype = torch.float32, planes: int | None = None
    ) -> Tensor:
        """Half a distance between the values that the planes read can say, and the rounding of what is computed."""
        left = self.count - self._planes(planes)
        half, centre = coded["half"].float(), coded["centre"].float()
        each = half * (1 << left) + rounding(centre.abs() + half * self.largest, dtype)
        each = each.unsqueeze(self.axis)
        shape = list(each.shape)
        shape[self.axis] = self.size
        return self.flat(each.expand(shape), coded["plane0"].shape[-1] * 8)

    def _planes(self, planes: int | None) -> int:
        planes = planes or self.read or self.count
        if not 1 <= planes <= self.count:
            raise CompositionError(f"{planes} planes cannot be read of {self.count}: ask for 1 to {self.count}.")
        return planes


def pack_bits(bits: Tensor) -> Tensor:
    """uint8 zeros and ones [..., D] as bytes [..., D / 8]: channel 8 * k + i is bit i of byte k."""
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.reshape(*bits.shape[:-1], bits.shape[-1] // 8, 8) * weights).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor) -> Tensor:
    """The zeros and ones again, uint8."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed[..., None] >> shifts & 1).flatten(-2)
