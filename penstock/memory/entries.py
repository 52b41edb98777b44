"""Entries: keys and values of one layer of one row, on their way from part to part.

Immutable: everything here gives new entries and leaves the old ones as they are.  Marks, forks and rollbacks rest on
that: a past state is a reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_COLUMNS = ("key", "value", "seen", "kind", "place", "bias")


@dataclass(frozen=True)
class Entries:
    """T entries of each of H key-value heads; heads may hold different entries, but equally many.

    `seen` is the index in the stream.  `place` is the index that the position is computed from, where that is another
    one (counters by kind).  `bias` is added to the scaled score: the logarithm of how many entries one stands for.
    Keys are raw, or, if `turned`, rotated to `at`.  Index columns live on the host.
    """

    key: Tensor  # [H, T, D]
    value: Tensor  # [H, T, Dv]
    seen: Tensor  # [H, T] int64
    kind: Tensor  # [H, T] uint8, core.Kind
    place: Tensor | None = None  # [H, T] int64
    bias: Tensor | None = None  # [H, T] float32
    turned: bool = False

    def __len__(self) -> int:
        return self.key.shape[1]

    @property
    def at(self) -> Tensor:
        """[H, T] int64: the index that positions are computed from."""
        return self.seen if self.place is None else self.place

    def columns(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {name: t for name in _COLUMNS if (t := getattr(self, name)) is not None}

    def cut(self, start: int, stop: int | None = None) -> Entries:
        """Entries [start, stop) of every head, with storage of their own."""
        return Entries(**{name: t[:, start:stop].clone() for name, t in self.columns().items()}, turned=self.turned)

    def split(self, count: int) -> tuple[Entries, Entries]:
        """The first `count` entries and the rest."""
        return self.cut(0, count), self.cut(count)

    def take(self, index: Tensor) -> Entries:
        """Entries by index: [n] for all heads alike, or [H, n] for each head its own."""
        if index.dim() == 1:
            index = index.expand(self.key.shape[0], -1)
        host, there = index.cpu(), index.to(self.key.device)

        def pick(tensor: Tensor, index: Tensor) -> Tensor:
            if tensor.dim() == 3:
                index = index[..., None].expand(*index.shape, tensor.shape[-1])
            return tensor.gather(1, index)

        picked = {name: pick(t, there if t.device == there.device else host) for name, t in self.columns().items()}
        return Entries(**picked, turned=self.turned)

    def where(self, chosen: Tensor) -> Entries:
        """Entries whose `chosen` [H, T] is true, in order; every head must choose equally many."""
        counts = chosen.sum(1)
        if int(counts.min()) != int(counts.max()):
            raise ValueError(f"heads of one cascade hold equally many entries, got counts {counts.tolist()}")
        order = torch.argsort(~chosen, dim=1, stable=True)
        return self.take(order[:, : int(counts[0])])

    def ordered(self) -> Entries:
        """The same entries in stream order, head by head."""
        return self.take(torch.argsort(self.seen, dim=1, stable=True))

    def with_bias(self) -> Entries:
        """The same, with a bias column (zeros where there was none)."""
        if self.bias is not None:
            return self
        return replace(self, bias=torch.zeros(self.seen.shape, device=self.key.device))

    @staticmethod
    def join(parts: Sequence[Entries]) -> Entries:
        """One after the other; all raw or all turned.  A bias that one has, all have."""
        if len({p.turned for p in parts}) > 1:
            raise ValueError("raw and rotated entries cannot be joined")
        if len(parts) == 1:
            return parts[0]
        if any(p.bias is not None for p in parts):
            parts = [p.with_bias() for p in parts]
        names = parts[0].columns()
        joined = {name: torch.cat([getattr(p, name) for p in parts], dim=1) for name in names}
        return Entries(**joined, turned=parts[0].turned)

    @staticmethod
    def empty(
        heads: int, key_width: int, value_width: int, dtype: torch.dtype, device: torch.device, *, placed: bool = False,
        biased: bool = False, turned: bool = False,
    ) -> Entries:  # fmt: skip
        """No entries, with the columns asked for."""
        index = torch.zeros(heads, 0, dtype=torch.int64)
        return Entries(
            torch.zeros(heads, 0, key_width, dtype=dtype, device=device),
            torch.zeros(heads, 0, value_width, dtype=dtype, device=device),
            index,
            torch.zeros(heads, 0, dtype=torch.uint8),
            index.clone() if placed else None,
            torch.zeros(heads, 0, device=device) if biased else None,
            turned,
        )
