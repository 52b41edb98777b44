"""What a codec is: a value that turns entries into fewer bytes and back, with a stated error.

A coded piece is a plain dict of tensors.  Axis 1 counts tokens, or groups of tokens, so that pieces are joined, cut and
overwritten by whole groups: quantising is incremental, and a piece never needs room beside its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from penstock.errors import CompositionError, InputError

Piece = dict[str, Tensor]

_LARGEST = 1e37  # from here on, half a step more could be infinite in float32


class Field(NamedTuple):
    """One tensor of a coded piece."""

    shape: tuple[int, ...]  # [H, T / tokens, ...], or [H, ...] where all tokens share it
    dtype: torch.dtype
    tokens: int  # tokens per slice of axis 1; 0: shared by all tokens, axis 1 is something else


class Codec(ABC):
    """Base of all codecs.  Subclasses are frozen dataclasses: what they hold are options, never data."""

    @property
    def group(self) -> int:
        """Tokens that are coded together; every count of tokens is a multiple of it."""
        return 1

    @abstractmethod
    def fields(self, heads: int, entries: int, width: int) -> dict[str, Field]:
        """The tensors of a piece of `entries` tokens."""

    @abstractmethod
    def encode(self, x: Tensor, like: Mapping[str, Tensor] | None = None) -> Piece:
        """Code x [H, T, D].  What tokens share (an order of channels) is taken from the piece `like`, if given."""

    @abstractmethod
    def decode(self, coded: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """[H, T, D] in `dtype`; computed in float32."""

    @abstractmethod
    def bound(self, coded: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
        """The most by which a decoded element may be off: broadcasts to [H, T, D], float32."""

    # -- the rest follows from the fields -----------------------------------------------------------------------

    def nbytes(self, heads: int, entries: int, width: int) -> int:
        """Bytes of a piece: codes, scales, exponents, orders."""
        return sum(math.prod(f.shape) * f.dtype.itemsize for f in self.fields(heads, entries, width).values())

    def empty(self, heads: int, entries: int, width: int, device: torch.device | str = "cpu") -> Piece:
        """Room for `entries` tokens, all zeros: a store that is written group by group."""
        self.check_count(entries)
        found = self.fields(heads, entries, width)
        return {name: torch.zeros(f.shape, dtype=f.dtype, device=device) for name, f in found.items()}

    def write(self, store: Piece, start: int, coded: Mapping[str, Tensor]) -> None:
        """Overwrite the tokens of `store` from `start` on, in place."""
        self.check_count(start)
        for name, tokens in self._steps(coded).items():
            if tokens:
                store[name].narrow(1, start // tokens, coded[name].shape[1]).copy_(coded[name])
            else:
                store[name].copy_(coded[name])

    def join(self, *pieces: Mapping[str, Tensor]) -> Piece:
        """The tokens of the first, then those of the next."""
        first, out = pieces[0], {}
        for name, tokens in self._steps(first).items():
            parts = [piece[name] for piece in pieces]
            if not tokens and any(part is not first[name] and not torch.equal(part, first[name]) for part in parts):
                raise CompositionError(
                    f"two pieces of different {name} cannot be joined: encode the second like the first."
                )
            out[name] = torch.cat(parts, dim=1) if tokens else first[name]
        return out

    def cut(self, coded: Mapping[str, Tensor], start: int, stop: int) -> Piece:
        """Tokens [start, stop), whole groups, with storage of their own."""
        self.check_count(start)
        self.check_count(stop)
        return {
            name: coded[name][:, start // tokens : stop // tokens].clone() if tokens else coded[name]
            for name, tokens in self._steps(coded).items()
        }

    def check_count(self, entries: int) -> None:
        """Raise CompositionError unless `entries` are whole groups."""
        if entries % self.group:
            raise CompositionError(
                f"{entries} tokens are not whole groups: code, join and cut multiples of {self.group} tokens."
            )

    def _steps(self, coded: Mapping[str, Tensor]) -> dict[str, int]:
        """Tokens per slice of axis 1, by field."""
        return {name: self.tokens_of(name) for name in coded}

    def tokens_of(self, name: str) -> int:
        """Tokens per slice of axis 1 of a field."""
        return self.fields(1, self.group, 32)[name].tokens

    def prepared(self, x: Tensor) -> Tensor:
        """x [H, T, D] in float32, checked."""
        if x.dim() != 3:
            raise ValueError(f"expected [H, T, D], got a shape of {list(x.shape)}")
        self.check_count(x.shape[1])
        x = x.float()
        if not bool((x.abs() <= _LARGEST).all()):  # false for NaN
            raise InputError(
                f"keys or values that are NaN, infinite or beyond {_LARGEST:g} have no code: run the model in bfloat16 "
                "or float32, or keep this memory in full precision."
            )
        return x


def finished(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Decoded values in their dtype; what was rounded past the range of float16 stays inside it."""
    if dtype == torch.float16:
        x = x.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    return x.to(dtype)


def rounding(most: Tensor, dtype: torch.dtype) -> Tensor:
    """What a few float32 operations on numbers up to `most`, then rounding to a dtype, may be off by."""
    info = torch.finfo(dtype)
    relative = info.eps / 2 + 4 * torch.finfo(torch.float32).eps
    return most * relative + info.smallest_normal * info.eps
