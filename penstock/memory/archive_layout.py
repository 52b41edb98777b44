"""How the blocks of an archive lie in memory: rows that only grow, and the columns of a block's bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from penstock.memory.entries import Entries
from penstock.memory.parts import Place
from penstock.memory.vector import Vector

_OWN = 64  # rows that a handle adds beside a common base before it moves to a base of its own
_PIECE = 4096  # vectors per head that are scored at once


@dataclass(frozen=True)
class Rows:
    """Rows [H, ...] on the host that only grow: a common base, and what was added after parting from others who share
    it.  They lie head by head, as they are multiplied; all that is given and taken here is [n, H, ...].
    """

    base: Vector
    own: Vector

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, room: int = 0) -> Rows:
        """Nothing yet; with `room`, so many rows fit without a second buffer."""
        return Rows(Vector.empty(shape, dtype, axis=1, room=room), Vector.empty(shape, dtype, axis=1))

    def none(self, room: int = 0) -> Rows:
        """No rows of the same shape."""
        data = self.base.buffer.data
        return Rows.empty((data.shape[0], *data.shape[2:]), data.dtype, room)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All rows, in one or two pieces."""
        return tuple(v.data.transpose(0, 1) for v in (self.base, self.own) if len(v)) or (
            self.base.data.transpose(0, 1),
        )

    def pieces(self, first: int) -> Iterator[Tensor]:
        """The rows from `first` on, cut where their count says, not where the parts end.

        A matrix product depends on how many rows it has, in the last bits; so equal rows give equal products in
        every handle, however it came to them.
        """
        size = max(1, _PIECE // math.prod(self.base.data.shape[2:-1]))
        for start in range(first, len(self), size):
            stop, cut = min(start + size, len(self)), len(self.base)
            parts = (self.base.data[:, start:stop], self.own.data[:, max(0, start - cut) : max(0, stop - cut)])
            each = parts[0] if stop <= cut else parts[1] if start >= cut else torch.cat(parts, 1)
            yield each.transpose(0, 1)

    def __len__(self) -> int:
        return len(self.base) + len(self.own)

    def append(self, more: Tensor) -> Rows:
        """With `more` behind."""
        if not len(self.own) and self.base.buffer.used == len(self.base):
            return Rows(self.base.append(more.transpose(0, 1)), self.own)
        if len(self.own) <= max(_OWN, len(self.base) // 4):
            return Rows(self.base, self.own.append(more.transpose(0, 1)))
        return self.from_row(0).append(more)

    def from_row(self, first: int) -> Rows:
        """The rows from `first` on, in a buffer of their own."""
        none = self.none(room=self.base.buffer.data.shape[1])
        return Rows(none.base.append(torch.cat(self.parts)[first:].transpose(0, 1)), none.own)

    @property
    def buffers(self) -> tuple[Any, ...]:
        return (self.base.buffer, self.own.buffer)


@dataclass(frozen=True)
class Layout:
    """Where the columns of `heads` heads of a block lie in its bytes.

    `chosen` entries of a block are marked where its summary cannot be made from its keys alone.
    """

    place: Place
    block: int
    heads: int
    marked: bool = False

    def _columns(self) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
        layer, shape = self.place.layer, (self.heads, self.block)
        yield "seen", torch.int64, shape
        if self.place.placed:
            yield "place", torch.int64, shape
        yield "key", self.place.dtype, (*shape, layer.key_width)
        yield "value", self.place.dtype, (*shape, layer.value_width)
        yield "kind", torch.uint8, shape
        if self.marked:
            yield "chosen", torch.uint8, shape

    @property
    def nbytes(self) -> int:
        """Bytes of one row, a multiple of 8 so that all columns are aligned."""
        return -(-sum(_size(dtype, shape) for _, dtype, shape in self._columns()) // 8) * 8

    def pack(self, entries: Entries, chosen: Tensor | None = None) -> Tensor:
        """[n, nbytes] uint8 of entries [heads, n * block] and their marks [n, heads, block]."""
        blocks = len(entries) // self.block
        out = torch.zeros(blocks, self.nbytes, dtype=torch.uint8)
        start = 0
        for name, dtype, shape in self._columns():
            if name == "chosen":
                assert chosen is not None
                column = chosen.cpu().to(dtype).contiguous()
            else:
                column = getattr(entries, name).cpu().unflatten(1, (blocks, self.block)).transpose(0, 1).contiguous()
            size = _size(dtype, shape)
            out[:, start : start + size] = column.reshape(blocks, -1).view(torch.uint8)
            start += size
        return out

    def column(self, rows: Tensor, wanted: str, first: int = 0) -> Tensor:
        """[..., heads, block, ...] of rows [..., nbytes], or of what lies from `first` on in them; a view."""
        start = -first
        for name, dtype, shape in self._columns():
            size = _size(dtype, shape)
            if name == wanted:
                return rows[..., start : start + size].view(dtype).unflatten(-1, shape)
            start += size
        raise KeyError(wanted)

    def bytes_of(self, *wanted: str) -> slice:
        """The bytes of a row in which these columns lie, with what is between them."""
        starts, start = {}, 0
        for name, dtype, shape in self._columns():
            starts[name] = (start, start + _size(dtype, shape))
            start = starts[name][1]
        bounds = [starts[name] for name in wanted]
        return slice(min(first for first, _ in bounds), max(last for _, last in bounds))

    def head_bytes(self, wanted: str) -> int:
        """Bytes from head to head of a column; 0 where a row holds one head only."""
        part = self.bytes_of(wanted)
        return (part.stop - part.start) // self.heads if self.heads > 1 else 0

    def unpack(self, rows: Tensor, shift: int) -> Entries:
        """Entries [H, n * block] of rows [n, nbytes], or of [H, n, nbytes] with a head in each; indices moved."""
        found: dict[str, Tensor] = {}
        for name, _, _ in self._columns():
            if name != "chosen":
                column = self.column(rows, name)
                column = column.transpose(0, 1) if rows.dim() == 2 else column[:, :, 0]  # [H, n, block, ...]
                found[name] = column.flatten(1, 2)
        device = self.place.device
        place = found["place"] + shift if self.place.placed else None
        return Entries(
            found["key"].to(device), found["value"].to(device), found["seen"] + shift, found["kind"], place
        )  # fmt: skip


def _size(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    size = dtype.itemsize
    for n in shape:
        size *= n
    return size
