"""Blocks of one size in their tiers: who stays in RAM, who goes to the disk, who is dropped.

A block is on the disk, in RAM, or in both; it is written at most once.  RAM gives up its least recently used block; if
that is not on the disk yet, a batch of the next ones is written with one sync.  The last tier (the disk, if there is
one) says how many blocks there may be, equally many for each line of stores: its first one goes when a new one comes,
whatever was read in between and whatever other lines do, so that what is kept does not depend on either.

All of this under the pool's lock; only `loads` reads without it.
"""

from __future__ import annotations

import errno
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from penstock.memory.tiers import header as headers
from penstock.memory.tiers.disk import Files
from penstock.memory.tiers.index import BlockRow
from penstock.memory.tiers.journal import Journal
from penstock.memory.tiers.ram import Row, Rows, Slabs
from penstock.memory.tiers.records import Order, Records
from penstock.memory.tiers.table import Ids

_BATCH = 64  # blocks written with one sync


class Shelf:
    """All blocks of `row_bytes` bytes."""

    def __init__(self, row_bytes: int, journal: Journal, files: Files | None) -> None:
        self.row_bytes, self.journal, self.files = row_bytes, journal, files
        self.ram_limit = self.disk_limit = 0  # bytes, set by the pool
        self.most = 0  # blocks whose side tables main memory has room for, set by the pool
        self.lines = 1  # lines of stores that share the capacity, set by the pool
        self.held: Counter[int] = Counter()  # blocks that some tier has, by line
        self.records = Records()
        self.slabs = Slabs(row_bytes)
        self.lends = False  # blocks in RAM are being read where they lie: they must stay there
        self.loading: set[int] = set()  # blocks whose file is being read without the lock (`loads`)
        self._troubles: set[str] = set()  # what failed when the disk was last written to: write, grow
        self._coldest = Order(self.records, "ram", "used")
        self._eldest: dict[int, Order] = {}
        self._eldest_in_ram = Order(self.records, "ram", "birth")
        self._eldest_on_disk = Order(self.records, "disk", "birth")

    def retain(self, blocks: Ids) -> None:
        self.records.refs[blocks] += 1  # a page names a block once

    def release(self, blocks: Ids) -> None:
        self.records.refs[blocks] -= 1
        for block in blocks[self.records.refs[blocks] == 0].tolist():
            if block not in self.loading:  # else its load forgets it
                self.forget(block)
        self.slabs.trim()

    def gone(self, blocks: Ids) -> NDArray[np.bool_]:
        out: NDArray[np.bool_] = (self.records.ram[blocks] < 0) & (self.records.disk[blocks] < 0)
        return out

    def add(self, content: Row, home: int, line: int, index: int) -> int:
        """Take in a new block; returns its number, with one reference."""
        self.limit_line(line, self.capacity - 1, f"the {'RAM' if self.files is None else 'disk'} tier is full")
        slot = self.room()
        assert slot is not None
        self.slabs.row(slot)[:] = content
        self.held[line] += 1
        serial = self.journal.serial()
        block = self.records.new(birth=serial, home=home, line=line, id=index, generation=self.journal.generation)
        self.enter_ram(block, slot)
        return block

    def persist(self, blocks: list[int]) -> bool:
        """Write those that are in RAM only; True if all are on the disk and in the index."""
        dirty = [block for block in blocks if self.records.disk[block] < 0 and self.records.ram[block] >= 0]
        for first in range(0, len(dirty), _BATCH):
            self._write(dirty[first : first + _BATCH])
        return bool((self.records.disk[blocks] >= 0).all()) and self.journal.commit()

    def dirty(self) -> list[int]:
        """Blocks that are in RAM only."""
        return [int(block) for block in np.flatnonzero((self.records.ram >= 0) & (self.records.disk < 0))]

    def adopt(self, row: BlockRow, home: int, line: int) -> int:
        """Take in a block that an earlier process left; -1 if its place in the files is gone."""
        slot = self.file().slot(row.file, row.slot)
        if slot is None:
            return -1
        block = self.records.new(birth=row.birth, home=home, line=line, id=row.id, generation=row.generation)
        self.records.checksum[block] = np.void(row.checksum)
        self.records.disk[block] = slot
        self.held[line] += 1
        return block

    def is_below(self, block: int) -> bool:
        """Whether a block is on the disk only."""
        return bool(self.records.ram[block] < 0 <= self.records.disk[block])

    def settle(self) -> None:
        """After all blocks were adopted: what nobody took is free."""
        self.file().settle(set(self.records.disk[self.records.disk >= 0].tolist()))

    # -- making room ----------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Blocks there may be of each line."""
        if self.files is None:
            return self.ram_limit // self.row_bytes // self.lines
        return min(self.most, self.disk_limit // self.files.slot_bytes) // self.lines

    def limit_line(self, line: int, most: int, reason: str) -> None:
        """Drop the oldest blocks of a line until there are no more than `most`."""
        while self.held[line] > most:
            order = self._eldest.setdefault(line, Order(self.records, "live", "birth", line))
            self.drop(order.first(), "dropped", reason)

    def forget_line(self, line: int) -> None:
        """A line has ended."""
        self._eldest.pop(line, None)
        del self.held[line]

    def room(self, *, may_drop: bool = True) -> int | None:
        """A free slot in RAM; None if only a block that is nowhere else could make way, and it may not be dropped."""
        while (slot := self.slabs.take(self.ram_limit)) is None:
            if not self.evict(may_drop=may_drop):
                return None
        return slot

    def rooms(self, count: int) -> list[int]:
        """Up to `count` free slots in RAM, fewer where only blocks that are nowhere else could make way."""
        out: list[int] = []
        while len(out) < count and not self.lends:
            short = count - len(out) - self.slabs.free(self.ram_limit)
            if short > 0:
                cold = np.array(self._coldest.first(short), dtype=np.int64)
                clean = self.records.disk[cold] >= 0
                for block in cold[: clean.argmin() if not clean.all() else None].tolist():
                    self.leave_ram(block)
            out += self.slabs.take_up_to(count - len(out), self.ram_limit)
            if len(out) < count:
                slot = self.room(may_drop=False)  # writes what is not on the disk yet
                if slot is None:
                    break
                out.append(slot)
        return out

    def evict(self, *, may_drop: bool) -> bool:
        """Free one slot of RAM or more; False if that would lose a block and may not."""
        if self.files is not None:
            coldest = next(iter(self._coldest.first()), -1)
            if coldest < 0:
                return False  # what is in RAM is on its way there, or on its way to the caller
            if self.records.disk[coldest] < 0:
                # Written blocks stay in RAM for a while: a batch must be small beside both tiers.
                most = min(self.ram_limit // self.row_bytes, self.capacity) // 16
                batch = self._coldest.first(max(1, min(most, _BATCH)))
                self._write([block for block in batch if self.records.disk[block] < 0], may_drop=may_drop)
                if self.records.ram[coldest] < 0:
                    return True  # it was older than anything on the full disk
            if self.records.disk[coldest] < 0:  # the disk takes no blocks: is there another one that it has?
                clean = np.flatnonzero((self.records.ram >= 0) & (self.records.disk >= 0))
                coldest = int(clean[self.records.used[clean].argmin()]) if len(clean) else -1
            if coldest >= 0:
                self.leave_ram(coldest)
                return True
        if may_drop:
            why = "the RAM tier is full" if self.files is None else "the RAM tier is full and the disk takes no blocks"
            self.drop(self._eldest_in_ram.first(), "dropped", why)
        return may_drop

    def _write(self, blocks: list[int], *, may_drop: bool = True) -> None:
        """Write blocks from RAM to the disk, as many as it takes; they stay in RAM."""
        records = self.records
        rows: list[tuple[int, bytes, Row]] = []
        placed: list[tuple[int, int]] = []
        try:
            for block in blocks:
                try:
                    slot = self._place(block, may_drop=may_drop)
                except OSError:
                    if placed:
                        break  # write those; the others come later
                    raise
                if slot is not None:
                    content = self.slabs.row(int(records.ram[block]))
                    records.checksum[block] = np.void(headers.digest(content.data))
                    rows.append((slot, self.header(block), content))
                    placed.append((block, slot))
            # Blocks of forks end with the process: the system may write them when it likes.
            self.file().write(rows, sync=any(self._is_listed(block) for block, _ in placed))
        except OSError as error:
            for _, slot in placed:
                self.file().give_back(slot)
            self._trouble("write", f"the disk takes no blocks ({error.strerror or error})")
            return
        self._troubles.discard("write")
        for block, slot in placed:
            records.disk[block] = slot
            self._eldest_on_disk.entered(block)
        if self.journal.index is not None:
            entries = [self._entry(block) for block, _ in placed]
            self.journal.index.add([entry for entry in entries if entry is not None])
        self.journal.commit()

    def _place(self, block: int, *, may_drop: bool) -> int | None:
        """A slot on the disk for a block; None if the block itself was the oldest and is dropped.  Raises OSError."""
        size = self.file().nbytes
        try:
            slot = self.file().take(self.disk_limit)
            if self.file().nbytes > size:
                self._troubles.discard("grow")
        except OSError as error:
            if not may_drop or not self._eldest_on_disk.first(1, self.loading):
                raise
            self._trouble("grow", f"the disk tier cannot grow ({error.strerror or error})")
            slot = None  # go on in the files there are
        while slot is None:
            eldest = self._eldest_on_disk.first(1, self.loading)
            if not may_drop or not eldest:
                raise OSError(errno.ENOSPC, "no place for a block")
            if self.records.birth[eldest[0]] > self.records.birth[block]:
                self.drop([block], "dropped", "the disk tier is full")
                return None
            self.drop(eldest, "dropped", "the disk tier is full")
            slot = self.file().take(0)
        return slot

    def _trouble(self, kind: str, reason: str) -> None:
        """Say once that the disk does not work, until it works again."""
        if kind not in self._troubles:
            self._troubles.add(kind)
            self.journal.note("unwritten", reason)

    def move(self, block: int, slot: int) -> None:
        """A block is at another place on the disk now; to be committed."""
        self.records.disk[block] = slot
        entry = self._entry(block)
        if self.journal.index is not None and entry is not None:
            self.journal.index.add([entry])

    # -- small moves ----------------------------------------------------------------------------------------------

    def enter_ram(self, block: int, slot: int) -> None:
        self.records.ram[block] = slot
        self.records.used[block] = self.journal.serial()
        self._eldest_in_ram.entered(block)

    def take_in(self, blocks: Ids, slots: list[int], content: Rows) -> None:
        """Blocks come from the disk to slots of RAM, used just now."""
        if not len(blocks):
            return
        places = np.array(slots, dtype=np.int64)
        self.slabs.fill(places, content)
        self.records.ram[blocks] = places
        self.records.used[blocks] = self.journal.serial()
        self._eldest_in_ram.entered(int(blocks[self.records.birth[blocks].argmin()]))

    def leave_ram(self, block: int) -> None:
        if self.records.ram[block] >= 0:
            self.slabs.give_back(int(self.records.ram[block]))
            self.records.ram[block] = -1

    def leave_disk(self, block: int) -> None:
        if self.records.disk[block] >= 0:
            self.file().give_back(int(self.records.disk[block]))
            self.records.disk[block] = -1
            if self.journal.index is not None and self._is_listed(block):
                self.journal.index.remove(int(self.records.birth[block]))

    def drop(self, blocks: list[int], kind: str, reason: str) -> None:
        """These blocks are gone from all tiers; their rows stay until nobody refers to them."""
        for block in blocks:
            self._leave(block)
        self.journal.report(kind, [self._known(block) for block in blocks], reason)

    def forget(self, block: int) -> None:
        self._leave(block)
        self.records.free(block)

    def _leave(self, block: int) -> None:
        self.leave_ram(block)
        self.leave_disk(block)
        if self.records.live[block] == 0:
            self.held[int(self.records.line[block])] -= 1
        self.records.live[block] = -1

    def _is_listed(self, block: int) -> bool:
        """Whether the index knows it, so that it can be recovered."""
        return self.journal.homes[self.records.home[block]].number is not None

    def _known(self, block: int) -> tuple[int, int]:
        return int(self.records.home[block]), int(self.records.id[block])

    def file(self) -> Files:
        assert self.files is not None, "this pool has no disk tier"
        return self.files

    def header(self, block: int) -> bytes:
        return self.headers(np.array([block])).tobytes()

    def headers(self, blocks: Ids) -> Rows:
        """[n, bytes] what stands before each block on the disk."""
        records, homes = self.records, self.journal.homes
        known, which = np.unique(records.home[blocks], return_inverse=True)
        return headers.pack(
            self.journal.session, [homes[home].label for home in known.tolist()], which, records.generation[blocks],
            records.id[blocks], self.row_bytes, records.checksum[blocks],
        )  # fmt: skip

    def _entry(self, block: int) -> BlockRow | None:
        home, index = self._known(block)
        number, records = self.journal.homes[home].number, self.records
        if number is None:
            return None
        name, row = self.file().name(int(records.disk[block]))
        return BlockRow(
            int(records.birth[block]), number, index, self.journal.session, int(records.generation[block]), name, row,
            records.checksum[block].tobytes(),
        )  # fmt: skip
