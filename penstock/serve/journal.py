"""An append-only journal of one session: what came in, in which order, on the disk before it is acknowledged.

    record   length u32 | CRC-32 of the rest u32 | head: length u32, JSON | payload
    head     {"n": number, "kind": "append" | "ask" | "answer", ..., "tally": the count after it}

A record is written and synced before anybody is told of it.  What a crash leaves behind the last whole record was never
acknowledged and is cut off at the next start.  The journal is a row of files, `journal-FIRST`, named by the number of
their first record; a snapshot makes the files before it superfluous, and only whole files are deleted.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from penstock.errors import OutputError, SnapshotError

_FRAME = struct.Struct("<II")
_HEAD = struct.Struct("<I")
LONGEST = 1 << 26  # bytes of one record; a larger length is damage


class Record(NamedTuple):
    """One entry of the journal."""

    number: int
    kind: str
    head: dict[str, Any]
    payload: bytes


def _packed(record: Record) -> bytes:
    head = json.dumps({**record.head, "n": record.number, "kind": record.kind}, separators=(",", ":")).encode()
    body = _HEAD.pack(len(head)) + head + record.payload
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def _unpacked(data: bytes) -> tuple[list[Record], int]:
    """The whole records of a file, and where they end."""
    records, at = [], 0
    while at + _FRAME.size <= len(data):
        size, crc = _FRAME.unpack_from(data, at)
        body = data[at + _FRAME.size : at + _FRAME.size + size]
        if size > LONGEST or len(body) < size or size < _HEAD.size or zlib.crc32(body) != crc:
            break
        [width] = _HEAD.unpack_from(body)
        head = json.loads(body[_HEAD.size : _HEAD.size + width])
        records.append(Record(head.pop("n"), head.pop("kind"), head, body[_HEAD.size + width :]))
        at += _FRAME.size + size
    return records, at


class Journal:
    """The journal in `folder`; not safe for threads, its owner has a lock.

    `next` is the number of the next record. `sync`: False only where nothing is to survive.
    """

    def __init__(self, folder: Path, sync: bool = True) -> None:
        self.folder, self.sync = folder, sync
        self.next = 0
        self.bytes = 0  # of all files
        self._file: int | None = None
        self._size = 0  # whole records in the open file

    def read(self, first: int) -> list[Record]:
        """All records from number `first` on; cuts off what a crash has left behind the last whole one."""
        found: list[Record] = []
        files = sorted(self._files())
        for start, path in files:
            data = path.read_bytes()
            records, end = _unpacked(data)
            if end < len(data):
                if (start, path) != files[-1]:
                    raise SnapshotError(f"the journal {path} is damaged in its middle: restore it from a copy.")
                os.truncate(path, end)
            self.bytes += end
            found += records
        self.next = max([first, *(record.number + 1 for record in found)])
        kept = [record for record in found if record.number >= first]
        if [record.number for record in kept] != list(range(first, self.next)):
            raise SnapshotError(f"the journal in {self.folder} lacks records: restore it from a copy.")
        return kept

    def _files(self) -> Iterator[tuple[int, Path]]:
        for path in self.folder.glob("journal-*"):
            yield int(path.name.removeprefix("journal-")), path

    def write(self, kind: str, head: dict[str, Any], payload: bytes = b"") -> int:
        """Append a record and wait until it is on the disk; returns its number.  On failure nothing was appended."""
        data = _packed(Record(self.next, kind, head, payload))
        try:
            if self._file is None:
                path = self.folder / f"journal-{self.next:012d}"
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                self._size = os.fstat(self._file).st_size
                sync_folder(self.folder)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            if self.sync:
                os.fdatasync(self._file) if hasattr(os, "fdatasync") else os.fsync(self._file)
        except OSError as error:
            self._undo()
            raise OutputError(f"the journal of the session cannot be written ({error.strerror}): free space.") from None
        self._size += len(data)
        self.bytes += len(data)
        self.next += 1
        return self.next - 1

    def _undo(self) -> None:
        """Take a half-written record out again; if even that fails, go on in a new file."""
        if self._file is None:
            return
        try:
            os.ftruncate(self._file, self._size)
        except OSError:
            self.close()

    def rotate(self) -> int:
        """What comes next goes to a new file; returns the number of the next record."""
        self.close()
        return self.next

    def drop(self, before: int) -> None:
        """Delete the files whose records all have numbers below `before`."""
        files = sorted(self._files())
        ends = [start for start, _ in files[1:]] + [self.next]
        for (_, path), end in zip(files, ends):
            if end <= before:
                self.bytes -= path.stat().st_size
                path.unlink()

    def close(self) -> None:
        """Close the open file; the next record opens a new one."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def sync_folder(folder: Path) -> None:
    """Make new names in a folder survive a crash, where the file system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Replace a small file by a new one, whole or not at all."""
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("w", encoding="utf-8") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): free space.") from None
    sync_folder(path.parent)
