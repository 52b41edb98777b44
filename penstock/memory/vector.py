"""A tensor that only grows, shared by prefix: appending is cheap on average, copying is free."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_FIRST = 64  # rows that the first buffer holds; it doubles


@dataclass
class Buffer:
    """A storage that several values may share."""

    data: Tensor
    used: int = 0  # rows that some vector holds


@dataclass(frozen=True)
class Vector:
    """The first `count` slices of a buffer along `axis`; immutable, like all state of a part.

    Vectors with a common past share its buffer.  Whoever appends first goes on in place; another one that stands behind
    what is used moves to a buffer of its own.
    """

    buffer: Buffer = field(repr=False)
    count: int
    axis: int = 0

    @staticmethod
    def empty(
        shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu", axis: int = 0, room: int = 0
    ) -> Vector:
        """Nothing yet, with room for some; `shape` is that of the content without the growing axis."""
        full = [*shape[:axis], room, *shape[axis:]]
        return Vector(Buffer(torch.empty(full, dtype=dtype, device=device)), 0, axis)

    @property
    def data(self) -> Tensor:
        """The content, a view."""
        return self.buffer.data.narrow(self.axis, 0, self.count)

    def __len__(self) -> int:
        return self.count

    def append(self, more: Tensor) -> Vector:
        """A longer vector: what `more` holds along the axis comes last."""
        added = more.shape[self.axis]
        if not added:
            return self
        end, buffer = self.count + added, self.buffer
        capacity = buffer.data.shape[self.axis]
        if buffer.used != self.count or end > capacity:
            room = max(_FIRST, capacity)
            while room < end:
                room *= 2
            shape = list(buffer.data.shape)
            shape[self.axis] = room
            fresh = torch.zeros(shape, dtype=buffer.data.dtype, device=buffer.data.device)
            fresh.narrow(self.axis, 0, self.count).copy_(self.data)
            buffer = Buffer(fresh)
        buffer.data.narrow(self.axis, self.count, added).copy_(more)
        buffer.used = end
        return Vector(buffer, end, self.axis)

    def first(self, count: int) -> Vector:
        """A prefix."""
        return Vector(self.buffer, count, self.axis)
