"""Block floating point: short mantissas that share an exponent, with channels sorted by size.  arXiv:2403.20137

A block of channels of one token shares a power of two; each value keeps a signed mantissa.  One large channel makes the
step of its whole block coarse, so channels are sorted by the size of their keys: large ones then share blocks with
large ones.  Scores do not change when the channels of queries and keys are permuted alike.  The order is found once,
from keys of the model, and stored with the piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.errors import CompositionError
from penstock.memory.codec.base import Codec, Field, Piece, finished, rounding
from penstock.memory.codec.integers import pack, packed_width, unpack

_LOWEST = -100  # exponents below this carry nothing that a model computes with, and would leave the normal range


@dataclass(frozen=True)
class BlockFloat(Codec):
    """`bits` per mantissa and one exponent of 8 bits per `block` channels; the last block may be smaller.

    `sort` stores channels in the order of their size: `order_of` the first keys, unless encode is told another one.
    """

    bits: int = 4  # or 8
    block: int = 32
    sort: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise CompositionError(f"mantissas have 4 or 8 bits, got {self.bits}: choose one of the two.")
        if self.block < 1:
            raise CompositionError(f"a block needs at least 1 channel, got {self.block}: 32 or 64 are usual.")

    @property
    def largest(self) -> int:
        """The largest mantissa; codes are symmetric."""
        return (1 << (self.bits - 1)) - 1

    def fields(self, heads: int, entries: int, width: int) -> dict[str, Field]:
        out = {
            "codes": Field((heads, entries, packed_width(width, self.bits)), torch.uint8, 1),
            "exponent": Field((heads, entries, -(-width // self.block)), torch.int8, 1),
        }
        if self.sort:
            out["order"] = Field((heads, width), torch.int16, 0)
        return out

    def order_of(self, keys: Tensor) -> dict[str, Tensor]:
        """What `encode` takes as `like`: the order of channels by the norm of keys [H, T, D], largest first."""
        return {"order": channel_order(keys.float().square().sum(1))}

    def encode(self, x: Tensor, like: Mapping[str, Tensor] | None = None) -> Piece:
        packed_width(x.shape[-1], self.bits)
        x = self.prepared(x)
        out: Piece = {}
        if self.sort:
            out = {"order": like["order"]} if like is not None else self.order_of(x)
            x = permuted(x, out["order"])
        blocks = self._blocks(x)
        # The smallest power of two for which the largest value rounds to no more than the largest mantissa.
        fraction, power = torch.frexp(blocks.abs().amax(-1) / (self.largest + 0.5))
        exponent = torch.where(fraction == 0.5, power - 1, power)
        exponent = torch.where(fraction == 0, _LOWEST, exponent).clamp(min=_LOWEST)
        codes = torch.ldexp(blocks, -exponent[..., None]).round_().clamp_(-self.largest, self.largest)
        codes = codes.flatten(-2)[..., : x.shape[-1]] + (self.largest + 1)
        return {"codes": pack(codes.to(torch.uint8), self.bits), "exponent": exponent.to(torch.int8), **out}

    def decode(self, coded: Mapping[str, Tensor], dtype: torch.dtype, restore: bool = True) -> Tensor:
        """As for every codec; `restore=False` leaves the channels sorted, for queries that are `permuted` too."""
        codes = unpack(coded["codes"], self.bits)
        width = codes.shape[-1]
        blocks = self._blocks(codes.float().sub_(self.largest + 1))
        x = finished(torch.ldexp(blocks, coded["exponent"].int()[..., None]).flatten(-2)[..., :width], dtype)
        return permuted(x, inverse(coded["order"])) if restore and "order" in coded else x

    def bound(self, coded: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
        """Half a step of the block, and the rounding of what is computed."""
        width = coded["codes"].shape[-1] * 8 // self.bits
        exponent = coded["exponent"].int()
        step = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)  # [H, T, blocks]
        each = step / 2 + rounding(step * self.largest, dtype)
        each = each.repeat_interleave(self.block, dim=-1)[..., :width]
        return permuted(each, inverse(coded["order"])) if "order" in coded else each

    def _blocks(self, x: Tensor) -> Tensor:
        """[H, T, D] as [H, T, blocks, block], a short last block filled with zeros."""
        missing = -x.shape[-1] % self.block
        x = torch.nn.functional.pad(x, (0, missing))
        return x.reshape(*x.shape[:-1], x.shape[-1] // self.block, self.block)


def channel_order(size: Tensor) -> Tensor:
    """Channels of each head by size [H, D], largest first: [H, D] int16.

    The size may be the norm of keys over a text, or, without rotation, of the rows of the key projection.
    """
    return size.argsort(dim=-1, descending=True, stable=True).to(torch.int16)


def permuted(x: Tensor, order: Tensor) -> Tensor:
    """Channels of x [H, ..., D] in the order [H, D] of their head.

    For queries repeat the order over the heads of a group: `order.repeat_interleave(group, 0)`.
    """
    index = order.long().view(order.shape[0], *[1] * (x.dim() - 2), order.shape[1])
    return x.gather(-1, index.expand(x.shape))


def inverse(order: Tensor) -> Tensor:
    """The order that undoes an order."""
    return order.long().argsort(dim=-1).to(order.dtype)
