"""The index of a folder of blocks: SQLite beside the block files, what recovery starts from.

A block is entered after its bytes were synced, and the entry is committed before `append` or a spill counts as done.
Changes are kept in order and committed together; if a commit fails they wait for the next one, so the index always
shows one state that the stores were in.  A slot that was freed and written again between two commits fails the header
check when it is recovered, and counts as lost.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FORMAT = 1
_PENDING = 65_536  # changes that may wait for a disk that takes none; then the index is given up
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE stores (store INTEGER PRIMARY KEY, label TEXT UNIQUE NOT NULL, shape TEXT NOT NULL, dtype TEXT NOT NULL,
                     count INTEGER NOT NULL);
CREATE TABLE blocks (birth INTEGER PRIMARY KEY, store INTEGER NOT NULL, id INTEGER NOT NULL, session TEXT NOT NULL,
                     generation INTEGER NOT NULL, file TEXT NOT NULL, slot INTEGER NOT NULL, checksum BLOB NOT NULL,
                     UNIQUE (store, id));
"""


class StoreRow(NamedTuple):
    """A store as recovery finds it."""

    store: int
    label: str
    shape: tuple[int, ...]
    dtype: str
    length: int


class BlockRow(NamedTuple):
    """A block as recovery finds it."""

    birth: int
    store: int
    id: int
    session: str
    generation: int
    file: str
    slot: int
    checksum: bytes


class Index:
    """One connection, used under the pool's lock."""

    def __init__(self, path: Path, *, create: bool) -> None:
        if create:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))  # SQLite's own files follow this mode
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=1.0)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA wal_autocheckpoint = 256")
        if create:
            self._db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        self._pending: list[tuple[str, tuple[object, ...]]] = []
        self._counts: dict[int, int] = {}  # store -> blocks it has
        self._saved: dict[int, int] = {}  # store -> blocks it had at the last commit
        self._top: dict[int, int] = {}  # store -> largest id entered, + 1
        self._failures = self._skip = 0
        self._next = 1 + int(self._db.execute("SELECT coalesce(max(store), 0) FROM stores").fetchone()[0])

    # -- meta ---------------------------------------------------------------------------------------------------

    def describe(self, meta: dict[str, object]) -> None:
        """Replace what is said of the folder as a whole; committed at once, errors are raised."""
        rows = [(key, json.dumps(value)) for key, value in {"format": FORMAT, **meta}.items()]
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
        self._db.execute("COMMIT")

    def meta(self) -> dict[str, object]:
        """What `describe` was given."""
        return {key: json.loads(value) for key, value in self._db.execute("SELECT key, value FROM meta")}

    def stores(self) -> list[StoreRow]:
        """All stores, in the order they were opened; what they have is remembered for the next commits."""
        rows = self._db.execute("SELECT store, label, shape, dtype, count FROM stores ORDER BY store")
        out = [StoreRow(store, label, tuple(json.loads(shape)), dtype, n) for store, label, shape, dtype, n in rows]
        self._counts = {row.store: row.length for row in out}
        self._saved = dict(self._counts)
        self._top = dict(self._db.execute("SELECT store, max(id) + 1 FROM blocks GROUP BY store"))
        return out

    def blocks(self) -> list[BlockRow]:
        """All blocks, the oldest first."""
        query = "SELECT birth, store, id, session, generation, file, slot, checksum FROM blocks ORDER BY birth"
        return [BlockRow(*row) for row in self._db.execute(query)]

    # -- changes, pending until the next commit -------------------------------------------------------------------

    def open_store(self, label: str, shape: tuple[int, ...], dtype: str) -> int:
        """Enter a store; returns its number."""
        number, self._next = self._next, self._next + 1
        self._add("INSERT INTO stores VALUES (?, ?, ?, ?, 0)", (number, label, json.dumps(shape), dtype))
        self._counts[number] = self._saved[number] = 0
        return number

    def close_store(self, store: int) -> None:
        """Remove a store and its blocks."""
        self._add("DELETE FROM blocks WHERE store = ?", (store,))
        self._add("DELETE FROM stores WHERE store = ?", (store,))
        for known in (self._counts, self._saved, self._top):
            known.pop(store, None)

    def add(self, rows: Sequence[BlockRow]) -> None:
        """Enter blocks that are on the disk."""
        for row in rows:
            self._top[row.store] = max(self._top.get(row.store, 0), row.id + 1)
            self._add("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def remove(self, birth: int) -> None:
        """A block is on the disk no more."""
        self._add("DELETE FROM blocks WHERE birth = ?", (birth,))

    def count(self, store: int, count: int) -> bool:
        """The store has `count` blocks; True if that takes something back which a recovery would find."""
        self._counts[store] = count
        if count < self._top.get(store, 0):
            self._add("DELETE FROM blocks WHERE store = ? AND id >= ?", (store, count))
            self._top[store] = count
            return True
        return count < self._saved.get(store, 0)

    # -- commit -------------------------------------------------------------------------------------------------

    def commit(self) -> str | None:
        """Write the pending changes durably; the reason if that failed (they wait for the next commit)."""
        if len(self._pending) > _PENDING:
            self._failures += 1
            return "the index could not be written for too long"
        if self._skip:
            self._skip -= 1
            return "the index cannot be written at present"
        counts = [(n, store) for store, n in self._counts.items() if self._saved.get(store) != n]
        if not self._pending and not counts:
            return None
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for change, values in self._pending:
                self._db.execute(change, values)
            self._db.executemany("UPDATE stores SET count = ? WHERE store = ?", counts)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._failures += 1
            self._skip = min(2**self._failures, 256)  # commits until it is tried again
            self._undo()
            return f"the index could not be written ({error})"
        self._pending.clear()
        self._saved.update((store, n) for n, store in counts)
        self._failures = 0
        return None

    def close(self) -> None:
        """Close the connection; what is pending is lost."""
        self._db.close()

    def _add(self, change: str, values: tuple[object, ...]) -> None:
        if len(self._pending) <= _PENDING:  # beyond, the index stays as it was: a whole older state
            self._pending.append((change, values))

    def _undo(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:
            pass
