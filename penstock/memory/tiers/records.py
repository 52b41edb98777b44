"""What is known of each physical block, in columns, and which of them comes first by some order."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

_COLUMNS: dict[str, np.dtype[Any]] = {
    "refs": np.dtype(np.int32),  # pages that hold it; 0: the row is free
    "birth": np.dtype(np.int64),  # serial number of its append, unique in the pool
    "used": np.dtype(np.int64),  # serial number of its last use
    "ram": np.dtype(np.int64),  # its slot in RAM, or -1
    "disk": np.dtype(np.int64),  # its slot on the disk, or -1
    "live": np.dtype(np.int64),  # 0, or -1 when no tier has it any more
    "home": np.dtype(np.int32),  # number of the line of stores it was appended to
    "line": np.dtype(np.int32),  # home of the store that its line began with
    "id": np.dtype(np.int64),  # its id there
    "generation": np.dtype(np.int64),  # of the session that appended it
    "checksum": np.dtype("V16"),  # of its content, once it was written
}
ROW = sum(dtype.itemsize for dtype in _COLUMNS.values()) + 8  # bytes per block, its place in the tables of stores too
_PART = 16  # columns grow by one part in so many
GROWN = ROW * (1 + 2 / _PART)


class Records:
    """One row per physical block; rows are reused."""

    refs: NDArray[np.int32]
    birth: NDArray[np.int64]
    used: NDArray[np.int64]
    ram: NDArray[np.int64]
    disk: NDArray[np.int64]
    live: NDArray[np.int64]
    home: NDArray[np.int32]
    line: NDArray[np.int32]
    id: NDArray[np.int64]
    generation: NDArray[np.int64]
    checksum: NDArray[np.void]

    def __init__(self) -> None:
        for name, dtype in _COLUMNS.items():
            setattr(self, name, np.zeros(0, dtype=dtype))
        self._free: list[int] = []

    def new(self, *, birth: int, home: int, line: int, id: int, generation: int) -> int:
        """A row with one reference, in no tier yet."""
        if not self._free:
            self._grow()
        block = self._free.pop()
        self.refs[block] = 1
        self.birth[block] = self.used[block] = birth
        self.ram[block] = self.disk[block] = -1
        self.live[block] = 0
        self.home[block], self.line[block], self.id[block], self.generation[block] = home, line, id, generation
        return block

    def free(self, block: int) -> None:
        """Give the row back; its block is in no tier."""
        self.ram[block] = self.disk[block] = self.live[block] = -1
        self._free.append(block)

    def __len__(self) -> int:
        return len(self.refs) - len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return ROW * len(self.refs)

    def _grow(self) -> None:
        old = len(self.refs)
        new = old + max(16, old // _PART)
        for name, dtype in _COLUMNS.items():
            column = np.zeros(new, dtype=dtype)
            if name in ("ram", "disk", "live"):
                column[:] = -1
            column[:old] = getattr(self, name)
            setattr(self, name, column)
        self._free.extend(range(new - 1, old - 1, -1))


class Order:
    """The blocks of a tier (of one line of stores, if given), smallest key first.

    A sixteenth of them is ranked at a time, so that finding the next one costs a few operations on average and not a
    scan.  A queued block whose key has changed since is skipped: it has come back to the end of the order.
    """

    def __init__(self, records: Records, tier: str, key: str, line: int | None = None) -> None:
        self.records, self.tier, self.key, self.line = records, tier, key, line
        self._queue: deque[tuple[int, int]] = deque()

    def first(self, count: int = 1, skip: Collection[int] = ()) -> list[int]:
        """Up to `count` blocks in order; they stay in the tier."""
        while self._queue and not self._valid(*self._queue[0]):
            self._queue.popleft()
        out = self._pick(count, skip)
        if not out:
            self._rank(len(skip))
            out = self._pick(count, skip)
        return out

    def entered(self, block: int) -> None:
        """A block came into the tier; if it belongs among the ranked ones, they are ranked again."""
        if self._queue and getattr(self.records, self.key)[block] < self._queue[-1][1]:
            self._queue.clear()

    def _pick(self, count: int, skip: Collection[int]) -> list[int]:
        out: list[int] = []
        for block, key in self._queue:
            if block not in skip and self._valid(block, key):
                out.append(block)
                if len(out) == count:
                    break
        return out

    def _valid(self, block: int, key: int) -> bool:
        records = self.records
        is_in = getattr(records, self.tier)[block] >= 0 and getattr(records, self.key)[block] == key
        return bool(is_in and (self.line is None or records.line[block] == self.line))

    def _rank(self, skipped: int) -> None:
        inside = getattr(self.records, self.tier) >= 0
        if self.line is not None:
            inside &= self.records.line == self.line
        resident = np.flatnonzero(inside)
        keys = getattr(self.records, self.key)[resident]
        some = min(len(resident), len(resident) // 16 + 64 + skipped)
        if some < len(resident):
            chosen = np.argpartition(keys, some - 1)[:some]
            resident, keys = resident[chosen], keys[chosen]
        order = np.argsort(keys)
        self._queue = deque(zip(resident[order].tolist(), keys[order].tolist()))
