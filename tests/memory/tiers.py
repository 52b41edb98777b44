"""Blocks that say which they are, and pools that are watched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from penstock.memory.tiers import BlockStore, Pool, TierEvent

SHAPE = (2, 3, 8)  # one block
BLOCK = 2 * 3 * 8 * 4  # bytes
SLOT = 128 + BLOCK  # bytes on the disk; a multiple of 64


def numbered(*numbers: int) -> Tensor:
    """[n, *SHAPE]: every value of a block is different, and different from those of every other block."""
    inside = torch.arange(BLOCK // 4, dtype=torch.float32).view(SHAPE) / 64
    return torch.stack([inside + number for number in numbers]) if numbers else torch.zeros(0, *SHAPE)


class Watched:
    """A pool with its events, for blocks of SHAPE; sizes in blocks."""

    def __init__(self, ram: int, disk: int = 0, folder: Path | None = None, **options: Any) -> None:
        self.events: list[TierEvent] = []
        self.pool = Pool(ram * BLOCK, disk * SLOT, folder, on_event=self.events.append, session="s", **options)
        self.ram, self.disk = ram, disk

    def open(self, label: str = "layer") -> BlockStore:
        return self.pool.open(SHAPE, torch.float32, label)

    def filled(self, count: int, label: str = "layer") -> BlockStore:
        """A store with blocks 0 .. count - 1."""
        store = self.open(label)
        for number in range(count):
            store.append(numbered(number))
        return store

    def check(self) -> None:
        """The limits hold, and the slabs say the truth about their size."""
        assert self.pool.ram_bytes <= self.ram * BLOCK
        assert self.pool.disk_bytes <= self.disk * SLOT

    def reasons(self, kind: str) -> dict[int, str]:
        """What happened to which block."""
        return {block: event.reason for event in self.events if event.kind == kind for block in event.blocks}


def present(store: BlockStore) -> list[int]:
    """Ids that can be read; each that can is checked."""
    blocks, there = store.fetch(torch.arange(len(store)))
    ids = there.nonzero().flatten().tolist()
    assert torch.equal(blocks[there], numbered(*ids))
    assert not blocks[~there].any()
    return ids
