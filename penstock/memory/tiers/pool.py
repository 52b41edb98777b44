"""The pool: limits in bytes, shared by all block stores of a session, and the folder that its disk tier owns."""

from __future__ import annotations

import math
import secrets
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from penstock.errors import BudgetError, CompositionError, MemoryStateError
from penstock.memory.tiers.disk import Files
from penstock.memory.tiers.folder import Folder
from penstock.memory.tiers.journal import Journal, TierEvent
from penstock.memory.tiers.reader import Reader
from penstock.memory.tiers.shares import Line, divide, refuse
from penstock.memory.tiers.shelf import Shelf
from penstock.memory.tiers.shrink import shrink
from penstock.memory.tiers.store import BlockStore
from penstock.memory.tiers.table import Table
from penstock.memory.tiers.tally import Tally

_ATTEMPTS = 16  # to find shares that tables leave


class Pool:
    """RAM and disk for sealed blocks.

    ram, disk   limits in bytes: of the slabs and the tables beside them (`ram_bytes`), and of the block files
                (`disk_bytes`; the index beside them takes about 200 bytes per block and up to 2 MB of log).  Stores of
                different block sizes get shares in proportion to what one block of each store takes.  Tables come
                first: what they take beyond their share (those of forks, say) the slabs give up.
    expected    stores that will share the limits, for callers that size their tables
    folder      for the disk tier; made if it does not exist; belongs to one pool at a time
    durable     every block is on the disk when `append` returns
    patience    seconds that one `fetch` waits for the disk; None waits as long as it takes
    on_event    told what was dropped or lost, in the thread of the caller
    """

    def __init__(
        self, ram: int, disk: int = 0, folder: str | Path | None = None, *, session: str | None = None,
        generation: int = 0, durable: bool = False, patience: float | None = None,
        on_event: Callable[[TierEvent], None] | None = None, expected: int = 1, _folder: Folder | None = None,
    ) -> None:  # fmt: skip
        if disk and folder is None:
            raise BudgetError("a disk tier needs a folder: name one, or give it no bytes.")
        if durable and not disk:
            raise BudgetError("durable blocks need a disk tier: give it bytes and a folder.")
        if ram <= 0 or disk < 0:
            raise BudgetError(f"the RAM tier has {ram} bytes and the disk tier {disk}: give sizes above zero.")
        self.ram, self.disk, self.durable, self.patience = ram, disk, durable, patience
        self.lock = threading.Condition(threading.RLock())
        self.expected, self.closed = max(1, expected), False
        self._planned = self._over = 0  # bytes of tables that the shares leave room for, and those above
        self.journal = Journal(session or secrets.token_hex(16), generation, on_event)
        self.stores: dict[str, BlockStore] = {}  # opened and not closed, by label
        self._shelves: dict[int, Shelf] = {}
        self._live: Counter[int] = Counter()  # home of an opened store -> stores of that line, forks included
        self._lines: dict[int, Line] = {}  # by the same home
        self._tables = Tally()
        self._collected: deque[tuple[int, Table]] = deque()  # forks that nobody closed; filled by the collector
        self._forks = 0
        self.reader = Reader(self.lock)
        self.folder = _folder
        if disk and folder is not None and _folder is None:
            self.folder = Folder.create(Path(folder), self.journal.session, generation, ram, disk, durable)
        if self.folder is not None:
            self.journal.index = self.folder.index
        self._end = weakref.finalize(self, _end, self.reader, self._shelves, self.folder, delete=not durable)

    @staticmethod
    def recover(
        folder: str | Path, *, session: str, generation: int | None = None, ram: int | None = None,
        disk: int | None = None, durable: bool | None = None, patience: float | None = None,
        on_event: Callable[[TierEvent], None] | None = None,
    ) -> Pool:  # fmt: skip
        """The pool that a session left in a folder, with its stores in `pool.stores`; limits default to the old ones.

        `generation` is the one that the caller knows of; a folder that was recovered since is refused with
        SnapshotError, and so is one of another session.  The new pool is one generation younger.
        """
        from penstock.memory.tiers.recover import recover

        return recover(
            Path(folder), session=session, generation=generation, ram=ram, disk=disk, durable=durable,
            patience=patience, on_event=on_event,
        )  # fmt: skip

    # -- size -----------------------------------------------------------------------------------------------------

    @property
    def session(self) -> str:
        return self.journal.session

    @property
    def generation(self) -> int:
        return self.journal.generation

    @property
    def ram_bytes(self) -> int:
        """Bytes of the slabs, and of the tables beside their blocks."""
        with self.lock:
            return self.table_bytes + sum(shelf.slabs.nbytes for shelf in self._shelves.values())

    @property
    def table_bytes(self) -> int:
        """Bytes of the tables: what is known of each block, and what callers have beside (`count_in`)."""
        tables = self._tables.nbytes
        if any(line.table for line in self._lines.values()):
            tables += sum(shelf.records.nbytes for shelf in self._shelves.values())
        return tables

    @property
    def disk_bytes(self) -> int:
        """Bytes of the block files."""
        with self.lock:
            return sum(shelf.files.nbytes for shelf in self._shelves.values() if shelf.files is not None)

    # -- stores ---------------------------------------------------------------------------------------------------

    def open(
        self, shape: tuple[int, ...], dtype: torch.dtype, label: str, *, beside: int = 0, fixed: int = 0
    ) -> BlockStore:  # fmt: skip
        """A store for blocks of `shape`; the one that was recovered under this label, if there is one.

        `beside` bytes of main memory per block, and `fixed` ones, are left for tables of the caller (`count_in`).
        """
        with self.lock:
            if self.closed:
                raise MemoryStateError("the pool is closed: make a new one.")
            known = self.stores.get(label)
            if known is not None:
                if not known.recovered or (known.shape, known.dtype) != (tuple(shape), dtype):
                    what = f"is open for blocks of {known.dtype} {list(known.shape)}"
                    raise CompositionError(f"the block store {label!r} {what}: give each store a label of its own.")
                known.recovered = False
                return known
            if math.prod(shape) <= 0:
                raise CompositionError(f"blocks of {list(shape)} hold nothing: give a shape without zeros.")
            number = None
            if self.journal.index is not None:
                number = self.journal.index.open_store(label, tuple(shape), str(dtype).removeprefix("torch."))
            store = self.enter(label, tuple(shape), dtype, number)
            self._lines[store.line] = Line(store.shelf.row_bytes, beside, fixed)
            try:
                self.share()
            except BudgetError:
                store.close()
                raise
            self.journal.commit()
        self.journal.deliver()
        return store

    def enter(self, label: str, shape: tuple[int, ...], dtype: torch.dtype, number: int | None) -> BlockStore:
        """A new store, not counted in the shares yet; under the lock."""
        shelf = self.shelf(math.prod(shape) * dtype.itemsize)
        store = BlockStore(self, shelf, Table(shelf), label, shape, dtype, self.journal.home(label, number))
        self.stores[label] = store
        self._live[store.line] = 1
        self._lines[store.line] = Line(shelf.row_bytes)
        return store

    def count_in(self, *tables: Any) -> None:
        """Count buffers (with a tensor `data`) as main memory for as long as anybody refers to them."""
        with self.lock:
            self._tables.add(tables)
            step = self.ram // 64 + 1
            for attempt in range(_ATTEMPTS):  # with fewer blocks there is room for fewer tables
                over = max(0, self.table_bytes - self._planned)
                if over <= self._over and (attempt or over >= self._over - 4 * step):
                    break
                self._over = -(-over // step) * step
                self.share(strict=False)
        self.journal.deliver()

    def forked(self, store: BlockStore, table: Table) -> BlockStore:
        """A store with a table that shares blocks with `store`; called by it, under the lock."""
        self._forks += 1
        label = f"{store.label.partition('~')[0]}~{self._forks}"
        home = self.journal.home(label)
        other = BlockStore(self, store.shelf, table, label, store.shape, store.dtype, home, store.line)
        self._live[other.line] += 1
        other.collected = weakref.finalize(other, self._collected.append, (other.line, table))
        return other

    def counted(self, home: int, count: int) -> None:
        """A store has `count` blocks now; called by it, under the lock."""
        number, index = self.journal.homes[home].number, self.journal.index
        if number is not None and index is not None and index.count(number, count):
            self.journal.commit()  # a rollback must not be undone by a crash

    def released(self, store: BlockStore, table: Table) -> None:
        """A store is closed; called by it, under the lock."""
        table.close()
        if self.stores.get(store.label) is store:
            del self.stores[store.label]
            number, index = self.journal.homes[store.home].number, self.journal.index
            if number is not None and index is not None:
                index.close_store(number)
                self.journal.commit()
        self._leave(store.line)

    def reap(self) -> None:
        """Close the forks that were forgotten without being closed; under the lock."""
        while self._collected:
            line, table = self._collected.popleft()
            table.close()
            self._leave(line)

    def _leave(self, line: int) -> None:
        self._live[line] -= 1
        if not self._live[line]:
            self._shelves[self._lines[line].row].forget_line(line)
            del self._live[line], self._lines[line]
            self.share()

    # -- the tiers ------------------------------------------------------------------------------------------------

    def flush(self) -> bool:
        """Write every block that is only in RAM to the disk; True if all opened stores could be recovered now."""
        with self.lock:
            done = [shelf.persist(shelf.dirty()) for shelf in self._shelves.values()] if self.folder else [False]
        self.journal.deliver()
        return all(done)

    def close(self, *, keep: bool | None = None) -> None:
        """End the pool.  What is in RAM is gone; the folder stays for `recover` if `keep` (default: if durable)."""
        with self.lock:
            if self.closed:
                return
            self.journal.commit()
            self.closed = True
        self._end.detach()
        _end(self.reader, self._shelves, self.folder, delete=not (self.durable if keep is None else keep))
        self.stores.clear()
        self.journal.deliver()

    def shelf(self, row_bytes: int) -> Shelf:
        """The shelf for blocks of this size."""
        if row_bytes not in self._shelves:
            files = Files(self.folder.path, row_bytes) if self.folder is not None else None
            self._shelves[row_bytes] = Shelf(row_bytes, self.journal, files)
        return self._shelves[row_bytes]

    def share(self, *, strict: bool = True) -> None:
        """Divide the limits among the shelves; raises BudgetError if a store could not hold one block.

        Not `strict`: one block is held above the limit if need be, since tables that are there cannot be refused.
        """
        lines: dict[int, list[Line]] = {size: [] for size in self._shelves}
        for line in self._lines.values():
            lines[line.row].append(line)
        if strict:
            refuse(lines, self.ram, self.disk)
        while any(shelf.loading for shelf in self._shelves.values()):
            self.lock.wait()
        shares = divide(lines, self.ram - self._over, self.disk, self.folder is not None)
        self._planned = sum(share.tables for share in shares.values())
        for size, share in shares.items():
            shelf = self._shelves[size]
            shelf.lines, shelf.most, shelf.ram_limit, shelf.disk_limit = share[:4]
        for shelf in self._shelves.values():
            shrink(shelf)
            if self.durable:  # blocks whose file went to another shelf
                shelf.persist(shelf.dirty())


def _end(reader: Reader, shelves: dict[int, Shelf], folder: Folder | None, *, delete: bool) -> None:
    """Stop the thread and let the files go: when a pool is closed, forgotten, or the process ends."""
    reader.stop()
    for shelf in shelves.values():
        if shelf.files is not None:
            shelf.files.close(delete=delete)
    shelves.clear()
    if folder is not None:
        folder.close(delete=delete)
