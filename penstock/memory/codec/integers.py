"""Integers with a scale and a zero per group: asymmetric, 8 or 4 bits.  arXiv:2402.02750 (which axis), 2410.12168.

Keys have a few large channels in fixed places, so they are grouped per channel, over tokens; values have not, so they
are grouped per token, over channels.  x = zero + code * scale, with both stored in 16 bits.  The stored zero is rounded
down and the stored scale up, so that the codes reach over the whole range: an element is off by half a step, whatever
the rounding of the two did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from penstock.errors import CompositionError, InputError
from penstock.memory.codec.base import Codec, Field, Piece, finished, rounding

Axis = Literal["channel", "token"]
_SCALES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Grouped(Codec):
    """Values that share a scale: `size` tokens of one channel, or `size` channels of one token.

    The last group of a token may be smaller.  `scales` is the dtype of what is shared: float16 is finer, bfloat16 has
    the range of float32.
    """

    per: Axis = "token"
    size: int = 32
    scales: str = "float16"

    bits: ClassVar[int] = 8

    def __post_init__(self) -> None:
        if self.per not in ("channel", "token"):
            raise CompositionError(f"groups run per channel or per token, got {self.per!r}: choose one of the two.")
        if self.size < 1:
            raise CompositionError(f"a group needs at least 1 value, got {self.size}: 32 or 64 are usual.")
        if self.scales not in _SCALES:
            raise CompositionError(f"scales are float16 or bfloat16, got {self.scales!r}: choose one of the two.")

    @property
    def group(self) -> int:
        return self.size if self.per == "channel" else 1

    @property
    def shared_dtype(self) -> torch.dtype:
        """What scales are stored in."""
        return _SCALES[self.scales]

    def shared_field(self, heads: int, entries: int, width: int) -> Field:
        """A number per group."""
        if self.per == "channel":
            return Field((heads, entries // self.size, width), self.shared_dtype, self.size)
        return Field((heads, entries, -(-width // self.size)), self.shared_dtype, 1)

    @property
    def axis(self) -> int:
        """The axis of `blocks` that runs inside a group."""
        return 2 if self.per == "channel" else 3

    def blocks(self, x: Tensor) -> Tensor:
        """[H, T, D] as [H, T/g, g, D] (per channel) or [H, T, D/c, c] (per token; a short last group is filled up)."""
        heads, count, width = x.shape
        if self.per == "channel":
            return x.reshape(heads, count // self.size, self.size, width)
        groups = -(-width // self.size)
        missing = groups * self.size - width
        if missing:
            x = torch.cat((x, x[..., -1:].expand(heads, count, missing)), dim=-1)
        return x.reshape(heads, count, groups, self.size)

    def flat(self, blocks: Tensor, width: int) -> Tensor:
        """Back to [H, T, D]."""
        heads = blocks.shape[0]
        if self.per == "channel":
            return blocks.reshape(heads, blocks.shape[1] * self.size, width)
        return blocks.reshape(heads, blocks.shape[1], blocks.shape[2] * self.size)[..., :width]

    def to_shared(self, x: Tensor, up: bool) -> Tensor:
        """Round a number per group up or down to what is stored; raise InputError where its range ends."""
        stored = round_up(x, self.shared_dtype) if up else -round_up(-x, self.shared_dtype)
        if not bool(torch.isfinite(stored).all()):
            raise InputError(
                f"keys or values up to {float(x.abs().max()):.3g} are beyond scales of {self.scales}: "
                "choose scales=bfloat16, or keep this memory in full precision."
            )
        return stored


@dataclass(frozen=True)
class Integers(Grouped):
    """Unsigned codes of `bits` bits with a scale and a zero per group."""

    def fields(self, heads: int, entries: int, width: int) -> dict[str, Field]:
        shared = self.shared_field(heads, entries, width)
        codes = Field((heads, entries, packed_width(width, self.bits)), torch.uint8, 1)
        return {"codes": codes, "scale": shared, "zero": shared}

    def encode(self, x: Tensor, like: Mapping[str, Tensor] | None = None) -> Piece:
        packed_width(x.shape[-1], self.bits)
        blocks, levels = self.blocks(self.prepared(x)), (1 << self.bits) - 1
        zero = self.to_shared(blocks.amin(self.axis), up=False)
        scale = self.to_shared((blocks.amax(self.axis) - zero.float()) / levels, up=True)
        step = torch.where(scale > 0, scale, 1).float().unsqueeze(self.axis)
        codes = ((blocks - zero.float().unsqueeze(self.axis)) / step).round_().clamp_(0, levels)
        return {"codes": pack(self.flat(codes, x.shape[-1]).to(torch.uint8), self.bits), "scale": scale, "zero": zero}

    def decode(self, coded: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        codes = unpack(coded["codes"], self.bits)
        scale, zero = (coded[name].float().unsqueeze(self.axis) for name in ("scale", "zero"))
        return finished(self.flat(self.blocks(codes.float()).mul_(scale).add_(zero), codes.shape[-1]), dtype)

    def bound(self, coded: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
        """Half a step, and the rounding of what is computed."""
        scale, zero = coded["scale"].float(), coded["zero"].float()
        most = zero.abs() + scale * ((1 << self.bits) - 1)
        each = (scale / 2 + rounding(most, dtype)).unsqueeze(self.axis)
        width = coded["codes"].shape[-1] * 8 // self.bits
        shape = list(each.shape)
        shape[self.axis] = self.size
        return self.flat(each.expand(shape), width)


@dataclass(frozen=True)
class Int8(Integers):
    """One byte per value."""

    bits: ClassVar[int] = 8


@dataclass(frozen=True)
class Int4(Integers):
    """Two values per byte: channel i in the low half, channel i + D/2 in the high half."""

    bits: ClassVar[int] = 4


def packed_width(width: int, bits: int) -> int:
    """Bytes of `width` codes; raise CompositionError where they do not fill whole bytes."""
    if width * bits % 8:
        raise CompositionError(f"{width} channels of {bits} bits do not fill whole bytes: choose an 8-bit codec.")
    return width * bits // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [..., D] as bytes [..., D * bits / 8]."""
    if bits == 8:
        return codes
    half = codes.shape[-1] // 2
    return codes[..., :half] | (codes[..., half:] << 4)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The codes again."""
    return packed if bits == 8 else torch.cat((packed & 15, packed >> 4), dim=-1)


def round_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest number of a 16-bit dtype that is not below x (float32)."""
    near = x.to(dtype) + 0.0  # +0.0: a negative zero would step the wrong way
    # Neighbours of one sign are neighbours as integers.
    above = near.view(torch.int16) + torch.where(near >= 0, 1, -1).to(torch.int16)
    return torch.where(near.float() < x, above.view(dtype), near)
