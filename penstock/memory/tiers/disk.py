"""Blocks on a disk: files of raw blocks at fixed places, each behind its header.

    file  = slot, slot, ...            slot = header (128 bytes) + block + padding to 64 bytes

Blocks are read and written in place with preadv and pwritev, not through a memory map.  Both go through the same page
cache, but a mapped page that cannot be had (a file that was cut short, a bad sector, a full disk) is a SIGBUS that
ends the process, and here it must be an error that costs one block.  Space is reserved when a file is made.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.memory.tiers import header as headers
from penstock.memory.tiers.ram import Row, Rows, extent

_ROWS = 1 << 20  # a slot is file * _ROWS + row


def slot_bytes(row_bytes: int) -> int:
    """What a block takes in a file."""
    return -(-(headers.SIZE + row_bytes) // 64) * 64


def write_at(file: int, parts: list[bytes | memoryview], offset: int) -> None:
    """Write all parts one behind the other; raises OSError."""
    size = sum(len(part) for part in parts)
    if os.pwritev(file, parts, offset) != size:
        raise OSError(errno.ENOSPC, "the disk took only a part of a block")


def read_at(file: int, parts: list[bytearray | memoryview], offset: int) -> int:
    """Read into all parts one behind the other; returns the bytes that were there; raises OSError."""
    return os.preadv(file, parts, offset)


def reserve(file: int, size: int) -> None:
    """Make the file `size` bytes long, with space on the disk where the system can promise it; raises OSError."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


def sync_folder(folder: Path) -> None:
    """Make the names of new files durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Files:
    """All files of blocks of one size."""

    def __init__(self, folder: Path, row_bytes: int) -> None:
        self.folder, self.row_bytes = folder, row_bytes
        self.slot_bytes = slot_bytes(row_bytes)
        self.nbytes = 0  # of the files
        self._files: dict[int, int] = {}  # number -> descriptor
        self._sizes: dict[int, int] = {}  # number -> slots
        self._free: list[int] = []
        self._serial = 0

    # -- slots --------------------------------------------------------------------------------------------------

    def take(self, limit: int) -> int | None:
        """A free slot, in a new file if the limit in bytes allows one; raises OSError."""
        if not self._free:
            self._allocate(limit)
        return self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        """The slot holds nothing any more."""
        if slot % _ROWS < self._sizes.get(slot // _ROWS, 0):
            self._free.append(slot)

    def name(self, slot: int) -> tuple[str, int]:
        """(file name, row) of a slot."""
        return self._name(slot // _ROWS), slot % _ROWS

    def slot(self, name: str, row: int) -> int | None:
        """The inverse of `name`; None if there is no such place."""
        number = next((n for n in self._files if self._name(n) == name), None)
        return None if number is None or not 0 <= row < self._sizes[number] else number * _ROWS + row

    # -- bytes --------------------------------------------------------------------------------------------------

    def write(self, blocks: Sequence[tuple[int, bytes, Row]], *, sync: bool = True) -> None:
        """Write (slot, header, content) each and sync the files; raises OSError."""
        for slot, header, content in blocks:
            write_at(self._files[slot // _ROWS], [header, content.data], slot % _ROWS * self.slot_bytes)
        if not sync:
            return
        for number in dict.fromkeys(slot // _ROWS for slot, _, _ in blocks):
            os.fsync(self._files[number])

    def read(self, slot: int, expected: bytes, out: Row) -> str | None:
        """Read a block into `out`; the reason if it is not the expected one, and then `out` is rubbish."""
        found, reasons = self.read_all(np.array([slot]), np.frombuffer(expected, dtype=np.uint8)[None])
        out[:] = found[0]
        return reasons.get(0)

    def read_all(self, slots: NDArray[np.int64], expected: Rows) -> tuple[Rows, dict[int, str]]:
        """The blocks [n, row_bytes] of slots; and of those that are not the expected ones, with rubbish for content,
        the reasons."""
        found, reasons = np.empty((len(slots), self.slot_bytes), dtype=np.uint8), dict[int, str]()
        memory, end = found.data.cast("B"), headers.SIZE + self.row_bytes
        for i in slots.argsort().tolist():  # in the order of the disk
            (file, row), begin = divmod(int(slots[i]), _ROWS), i * self.slot_bytes
            try:
                if read_at(self._files[file], [memory[begin : begin + end]], row * self.slot_bytes) < end:
                    reasons[i] = f"the file {self._name(file)} is cut short"
            except (OSError, KeyError) as error:  # -1 is in no file
                why = getattr(error, "strerror", None) or error
                reasons[i] = f"the file {self._name(file)} cannot be read ({why})"
        alike = (found[:, : headers.SIZE] == expected).all(1).tolist()
        for i, checksum in enumerate(headers.checksums(expected)):
            begin = i * self.slot_bytes
            if i in reasons:
                continue
            if not alike[i]:
                reasons[i] = headers.difference(found[i, : headers.SIZE], expected[i])
            elif headers.digest(memory[begin + headers.SIZE : begin + end]) != checksum:
                reasons[i] = "its content does not have its checksum"
        return found[:, headers.SIZE : end], reasons

    # -- files --------------------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Open the files that an earlier process left, all slots taken; what cannot be opened is passed over."""
        for path in sorted(self.folder.glob(f"{self.row_bytes}-*.blocks")):
            digits = path.stem.split("-")[1]
            if not digits.isdecimal():
                continue
            number = int(digits)
            self._serial = max(self._serial, number + 1)
            try:
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                slots = os.fstat(file).st_size // self.slot_bytes
            except OSError:
                continue
            self._files[number], self._sizes[number] = file, slots
            self.nbytes += slots * self.slot_bytes

    def settle(self, taken: set[int]) -> None:
        """After `adopt`: all slots but these are free."""
        places = (number * _ROWS + row for number, slots in self._sizes.items() for row in reversed(range(slots)))
        self._free = [slot for slot in places if slot not in taken]

    def withdraw(self, count: int) -> tuple[int, set[int]]:
        """Give out no more of the last `count` slots of the newest file (all it has, if fewer); returns (file, slots).

        To be followed by `cut`, when nothing is left in them.
        """
        number = max(self._files)
        size = self._sizes[number]
        gone = set(range(number * _ROWS + max(0, size - count), number * _ROWS + size))
        self._sizes[number] = size - len(gone)
        self._free = [slot for slot in self._free if slot not in gone]
        return number, gone

    def cut(self, number: int, count: int) -> None:
        """Shorten a file by the `count` slots that were withdrawn."""
        self.nbytes -= count * self.slot_bytes
        if self._sizes[number]:
            with contextlib.suppress(OSError):  # then it stays long; its end is not used
                os.ftruncate(self._files[number], self._sizes[number] * self.slot_bytes)
        else:
            self.drop(number)

    def drop(self, number: int) -> None:
        """Delete a file."""
        os.close(self._files.pop(number))
        self.nbytes -= self._sizes.pop(number) * self.slot_bytes
        self._free = [slot for slot in self._free if slot // _ROWS != number]
        with contextlib.suppress(OSError):
            self._path(number).unlink()

    def close(self, *, delete: bool) -> None:
        """Close the files, and delete them if they are worth nothing to anybody else."""
        for number in list(self._files):
            if delete:
                self.drop(number)
            else:
                os.close(self._files.pop(number))

    def _allocate(self, limit: int) -> None:
        count = extent(self.nbytes // self.slot_bytes, limit // self.slot_bytes)
        if not count:
            return
        number, self._serial = self._serial, self._serial + 1
        file = os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            reserve(file, count * self.slot_bytes)
            os.fsync(file)
            sync_folder(self.folder)
        except OSError:
            os.close(file)
            self._path(number).unlink(missing_ok=True)
            raise
        self._files[number], self._sizes[number] = file, count
        self.nbytes += count * self.slot_bytes
        self._free.extend(range(number * _ROWS + count - 1, number * _ROWS - 1, -1))

    def _name(self, number: int) -> str:
        return f"{self.row_bytes}-{number:06}.blocks"

    def _path(self, number: int) -> Path:
        return self.folder / self._name(number)
