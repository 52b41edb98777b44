"""What a vision tower says of a piece of a stream, on its way into a memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Visual:
    """The visual tokens of one temporal unit (one frame, or as many as the model joins in time).

    `positions` count from 0 inside the unit; `extent` is how far the position of what follows is moved on.  Token ids
    `before` and `behind` frame the unit in the stream.
    """

    embeddings: Tensor  # [n, hidden]
    positions: Tensor  # [axes, n] int64
    extent: int
    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    deep: tuple[Tensor, ...] = ()  # [n, hidden] each: what is added behind the first layers (deepstack)
    t0: float = 0.0  # seconds of stream time, of the first and the last frame
    t1: float = 0.0
    grid: tuple[int, int, int] = (1, 1, 0)  # tokens in time, height and width, before anything was dropped

    def __len__(self) -> int:
        return len(self.embeddings)

    def keep(self, index: Tensor | Sequence[int]) -> Visual:
        """Only the tokens of these indices, in order; with three axes they keep their positions."""
        chosen = torch.as_tensor(index, dtype=torch.int64)
        positions = self.positions[:, chosen]
        if len(positions) == 1:  # one axis counts tokens: the gap closes
            positions = torch.arange(len(chosen))[None]
        extent = self.extent if len(positions) > 1 else len(chosen)
        deep = tuple(layer[chosen] for layer in self.deep)
        return replace(self, embeddings=self.embeddings[chosen], positions=positions, extent=extent, deep=deep)


def placeholders(embeddings: Tensor) -> list[int]:
    """A negative number per visual token, made from its content: how a log records what has no token id."""
    rows = embeddings.detach().float().cpu().contiguous().numpy()
    return [-1 - (int.from_bytes(hashlib.blake2b(r.tobytes(), digest_size=4).digest(), "little") >> 1) for r in rows]
