"""Blocks in RAM: slabs of byte rows, allocated once and reused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Row = NDArray[np.uint8]
Rows = NDArray[np.uint8]  # [n, bytes]
SLAB = 64  # blocks of the first slab; each new one is as large as all before it, up to a sixteenth of the limit
_ROWS = 1 << 20  # a slot is slab * _ROWS + row


def extent(have: int, limit: int) -> int:
    """Blocks of the next slab or file when there are `have` and may be `limit`; 0 when there is no room."""
    return max(0, min(max(SLAB, have), max(1, limit // 16), limit - have, _ROWS))


class Slabs:
    """Rows of `row_bytes` bytes; pinned where there is an accelerator to copy to."""

    def __init__(self, row_bytes: int) -> None:
        self.row_bytes = row_bytes
        self.nbytes = 0  # of the storages
        self._slabs: dict[int, Tensor] = {}
        self._rows: dict[int, Row] = {}
        self._taken: dict[int, int] = {}
        self._retired: set[int] = set()
        self._free: list[int] = []
        self._serial = 0
        self._begin = np.zeros(0, dtype=np.int64)  # the address of each slab that there was

    def take(self, limit: int) -> int | None:
        """A free slot, from a new slab if the limit in bytes allows one."""
        if not self._free:
            self._allocate(limit)
        if not self._free:
            return None
        slot = self._free.pop()
        self._taken[slot // _ROWS] += 1
        return slot

    def take_up_to(self, count: int, limit: int) -> list[int]:
        """Free slots, fewer than `count` if there are not so many."""
        out: list[int] = []
        while len(out) < count and self.free(limit):
            cut = max(0, len(self._free) - (count - len(out)))
            out, self._free = out + self._free[: cut - 1 if cut else None : -1], self._free[:cut]
        for slab, taken in Counter(slot // _ROWS for slot in out).items():
            self._taken[slab] += taken
        return out

    def free(self, limit: int) -> int:
        """Free slots, those of a new slab included if there are no others."""
        if not self._free:
            self._allocate(limit)
        return len(self._free)

    def give_back(self, slot: int) -> None:
        """The slot holds nothing any more."""
        slab = slot // _ROWS
        self._taken[slab] -= 1
        if slab not in self._retired:
            self._free.append(slot)
        elif not self._taken[slab]:
            self._drop(slab)

    def row(self, slot: int) -> Row:
        """[row_bytes] bytes of a slot, to read and to write."""
        out: Row = self._rows[slot // _ROWS][slot % _ROWS]
        return out

    def copy(self, slots: NDArray[np.int64], out: Rows, at: NDArray[np.int64], part: slice) -> None:
        """Copy these bytes of slots to the rows `at` of `out`."""
        for number, some in self._by_slab(slots):
            out[at[some]] = self._rows[number][slots[some] % _ROWS, part]

    def addresses(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the rows of slots begin in memory; valid as long as the slots are taken."""
        out: NDArray[np.int64] = self._begin[slots // _ROWS] + slots % _ROWS * self.row_bytes
        return out

    def fill(self, slots: NDArray[np.int64], content: Rows) -> None:
        """Write [n, row_bytes] into slots."""
        for number, some in self._by_slab(slots):
            self._rows[number][slots[some] % _ROWS] = content[some]

    def _by_slab(self, slots: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        slabs = slots // _ROWS
        for number in np.unique(slabs).tolist():
            yield number, slabs == number

    def retire(self) -> int:
        """Choose the emptiest slab to be freed: it gives out no slots, and goes with its last one.  Returns it."""
        slab = min((s for s in self._slabs if s not in self._retired), key=self._taken.__getitem__)
        self._retired.add(slab)
        self._free = [slot for slot in self._free if slot // _ROWS != slab]
        if not self._taken[slab]:
            self._drop(slab)
        return slab

    def is_in(self, slot: int, slab: int) -> bool:
        """Whether a slot is one of a slab."""
        return slot // _ROWS == slab

    @property
    def slots(self) -> int:
        """Slots that can be used, taken or free."""
        return sum(len(rows) for slab, rows in self._rows.items() if slab not in self._retired)

    @property
    def taken(self) -> int:
        """Slots in use."""
        return sum(self._taken.values())

    def trim(self) -> None:
        """Free every slab if no slot is in use."""
        if not self.taken:
            for slab in list(self._slabs):
                self._drop(slab)
            self._free = []

    def _allocate(self, limit: int) -> None:
        have = self.nbytes // self.row_bytes
        count = extent(have, limit // self.row_bytes)
        if count:
            slab = torch.empty(count, self.row_bytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            self.nbytes += slab.untyped_storage().nbytes()
            number, self._serial = self._serial, self._serial + 1
            self._slabs[number], self._rows[number], self._taken[number] = slab, slab.numpy(), 0
            self._begin = np.append(self._begin, slab.data_ptr())
            self._free.extend(range(number * _ROWS + count - 1, number * _ROWS - 1, -1))

    def _drop(self, slab: int) -> None:
        self.nbytes -= self._slabs[slab].untyped_storage().nbytes()
        del self._slabs[slab], self._rows[slab], self._taken[slab]
        self._retired.discard(slab)
