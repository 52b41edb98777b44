"""A store of sealed blocks: what the pool hands out for each layer and group of heads."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock.errors import MemoryStateError
from penstock.memory.tiers.copies import addresses, copy
from penstock.memory.tiers.loads import loadable
from penstock.memory.tiers.shelf import Shelf
from penstock.memory.tiers.table import Table

if TYPE_CHECKING:
    from penstock.memory.tiers.pool import Pool


class BlockStore:
    """Blocks of one shape, numbered from 0 in the order they were appended.  Safe to use from several threads."""

    def __init__(
        self, pool: Pool, shelf: Shelf, table: Table, label: str, shape: tuple[int, ...], dtype: torch.dtype,
        home: int, line: int | None = None,
    ) -> None:  # fmt: skip
        self.pool, self.label, self.shape, self.dtype = pool, label, shape, dtype
        self.shelf, self.table, self.home, self.line = shelf, table, home, home if line is None else line
        self.recovered = False  # set by recovery until the store is opened again
        self.collected: weakref.finalize[Any, BlockStore] | None = None  # what happens to a forgotten fork
        self._closed = False

    def __len__(self) -> int:
        return len(self.table)

    @property
    def oldest(self) -> int:
        """The smallest id whose block may still be there; len(store) if there is none."""
        with self.pool.lock:
            return self.table.oldest

    @property
    def capacity(self) -> int:
        """Blocks that the last tier has room for, at present limits."""
        with self.pool.lock:
            return self.shelf.capacity

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.shelf.row_bytes

    def append(self, blocks: Tensor) -> int:
        """Seal blocks [n, *shape]; they get the next ids.  Returns the first of them.

        With a durable pool the blocks are on the disk when this returns, or an event says that they are not.
        """
        if tuple(blocks.shape[1:]) != self.shape or blocks.dtype != self.dtype or blocks.ndim == 0:
            raise MemoryStateError(
                f"{self.label} takes blocks of {self.dtype} {list(self.shape)}, not {blocks.dtype} "
                f"{list(blocks.shape[1:])}: give what it was opened for."
            )
        rows = blocks.detach().cpu().contiguous().view(len(blocks), math.prod(self.shape)).view(torch.uint8).numpy()
        pool = self.pool
        with pool.lock:
            self._check()
            self._check_lent()
            pool.reap()
            first, new = len(self.table), []
            for row in rows:
                new.append(self.shelf.add(row, self.home, self.line, len(self.table)))
                self.table.append(new[-1])
            pool.counted(self.home, len(self.table))
            if pool.durable and new and not self.shelf.persist(new):
                ids = [(self.home, first + i) for i in range(len(new))]
                pool.journal.report("undurable", ids, "the blocks could not be written to the disk")
        pool.journal.deliver()
        return first

    def skip(self, count: int) -> None:
        """Give the next `count` ids to blocks that are lost: a saved store is rebuilt with its holes."""
        with self.pool.lock:
            self._check()
            for _ in range(count):
                self.table.append(-1)
            self.pool.counted(self.home, len(self.table))

    def fetch(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(blocks [n, *shape], present [n] bool) of ids [n] int64, on the CPU.

        A block that is lost, or an id that was never given (-1 as padding, say), is zeros and not present.
        """
        out = torch.empty(len(ids), *self.shape, dtype=self.dtype)
        rows = out.view(len(ids), math.prod(self.shape)).view(torch.uint8)
        return out, self._copied(ids, rows, slice(0, self.block_bytes))

    def fetch_bytes(self, ids: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """The same, of each block these bytes only [n, bytes]; it is verified as a whole."""
        out = torch.empty(len(ids), part.stop - part.start, dtype=torch.uint8)
        return out, self._copied(ids, out, part)

    def _copied(self, ids: Tensor, out: Tensor, part: slice) -> Tensor:
        pool, wanted, rows = self.pool, ids.tolist(), out.numpy()
        with pool.lock:
            self._check()
            late = self._wait(wanted) if pool.patience is not None else set()
            blocks = self.table.find([-1 if index in late else index for index in wanted] if late else wanted)
            found = copy(self.shelf, blocks, rows, part)
            if not found.all():
                rows[~found] = 0
        pool.journal.deliver()
        return torch.from_numpy(found)

    @contextmanager
    def lent(self, ids: Tensor) -> Iterator[NDArray[np.int64] | None]:
        """Addresses of the bytes of blocks [n] in main memory; they stay there as long as the context lasts.

        None if they cannot all be there at once, some are lost, or blocks of this size are lent already: fetch them
        then.  Other threads wait meanwhile; in this one, what is fetched enters RAM no more, and nothing is appended.
        """
        shelf, pool = self.shelf, self.pool
        try:
            with pool.lock:
                self._check()
                found = None
                if not shelf.lends:
                    found = addresses(shelf, self.table.find(ids.tolist()), patient=pool.patience is None)
                if found is not None:
                    shelf.lends = True
                    try:
                        yield found
                    finally:
                        shelf.lends = False
                    return
        finally:
            pool.journal.deliver()
        yield None

    def prefetch(self, ids: Tensor) -> None:
        """Ask for blocks to be brought to RAM in the background.  Never raises: it is a guess about the future."""
        with self.pool.lock:
            blocks = [] if self._closed or self.pool.closed else [self.table.get(index) for index in ids.tolist()]
            below = [block for block in blocks if block >= 0 and self.shelf.is_below(block)]
            if below:
                self.pool.reader.request(self.shelf, below)

    def truncate(self, count: int) -> None:
        """Forget the ids from `count` on; the next append gives them again."""
        with self.pool.lock:
            self._check()
            self._check_lent()
            if not 0 <= count <= len(self.table):
                raise MemoryStateError(
                    f"{self.label} has {len(self.table)} blocks and cannot be cut to {count}: give a smaller number."
                )
            self.table.truncate(count)
            self.pool.counted(self.home, count)
        self.pool.journal.deliver()

    def fork(self, count: int | None = None) -> BlockStore:
        """A store that shares the blocks 0 .. count - 1 (all of them by default) and goes on by itself.

        Neither notices what becomes of the other.  A fork ends with the process: `Pool.recover` brings back the
        stores that were opened, not their forks.
        """
        with self.pool.lock:
            self._check()
            count = len(self.table) if count is None else count
            if not 0 <= count <= len(self.table):
                raise MemoryStateError(
                    f"{self.label} has {len(self.table)} blocks and cannot be forked at {count}: give a smaller number."
                )
            self.pool.reap()
            return self.pool.forked(self, self.table.fork(count))

    def close(self) -> None:
        """Forget all blocks.  What forks share stays with them."""
        with self.pool.lock:
            if not self._closed:
                self._closed = True
                if self.collected is not None:
                    self.collected.detach()
                if not self.pool.closed:
                    self.pool.released(self, self.table)

    def _wait(self, wanted: list[int]) -> set[int]:
        """Let the reader bring what is on the disk, for as long as the pool is patient; the ids that came too late."""
        patience = self.pool.patience
        assert patience is not None
        deadline = time.monotonic() + patience
        below = [i for i in dict.fromkeys(wanted) if self._below(i)]
        if self.shelf.lends or len(below) > loadable(self.shelf):  # more than fits: in the caller's time
            return set()
        if below:
            self.pool.reader.wait(self.shelf, [self.table.get(i) for i in below], deadline)
        late = [i for i in below if self._below(i)]
        if late:
            ids = [(self.home, i) for i in late]
            self.pool.journal.report("late", ids, f"the disk did not deliver within {patience} s")
        return set(late)

    def _below(self, index: int) -> bool:
        block = self.table.get(index)
        return block >= 0 and self.shelf.is_below(block)

    def _check_lent(self) -> None:
        if self.shelf.lends:
            raise MemoryStateError(f"blocks of {self.label} are lent: leave the context of `lent` first.")

    def _check(self) -> None:
        if self._closed or self.pool.closed:
            raise MemoryStateError(f"the block store {self.label} is closed: open a new one.")
