"""Where the memories of sessions without a row are kept: in main memory up to a limit, beyond it in a folder.

What is kept is immutable, so forks share it.  The oldest goes to disk first; it comes back when its session has work.
"""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from penstock.engine import allocator
from penstock.errors import MemoryStateError, OutputError, SnapshotError

_TIDY = 1024  # rows kept between two returns of freed pages to the system


@dataclass(eq=False)
class Kept:
    """One row's tensors, in main memory or in a file."""

    length: int  # tokens of the stream
    nbytes: int
    tensors: dict[str, Tensor] | None
    path: Path | None = None
    owners: int = 1


def size_of(tensors: dict[str, Tensor]) -> int:
    """Bytes of the real storages, each counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors.values()}.values())


class Attic:
    """Kept rows, with exact counters of bytes."""

    def __init__(self, ram: int, folder: Path | None) -> None:
        self.ram, self.folder = ram, folder
        self.ram_bytes = self.disk_bytes = 0
        self.over = 0  # times that more than `ram` had to be kept, for want of a folder
        self._in_ram: OrderedDict[Kept, None] = OrderedDict()  # oldest first
        self._on_disk: set[Kept] = set()
        self._numbers = itertools.count()
        self._puts = 0

    def put(self, tensors: dict[str, Tensor], length: int) -> Kept:
        """Keep a row."""
        whole = {name: t if t.untyped_storage().nbytes() == t.nbytes else t.clone() for name, t in tensors.items()}
        kept = Kept(length, size_of(whole), whole)
        self._in_ram[kept] = None
        self.ram_bytes += kept.nbytes
        while self.ram_bytes > self.ram and self._in_ram:
            if self.folder is None:
                self.over += 1
                break
            self._spill(next(iter(self._in_ram)), self.folder)
        self._puts += 1
        if self._puts % _TIDY == 0:
            allocator.give_back()
        return kept

    def _spill(self, kept: Kept, folder: Path) -> None:
        assert kept.tensors is not None
        path = folder / f"row-{os.getpid()}-{id(self):x}-{next(self._numbers)}.safetensors"
        try:
            save_file(kept.tensors, path)
            size = path.stat().st_size
        except (OSError, SafetensorError) as error:
            path.unlink(missing_ok=True)
            raise OutputError(f"{folder} takes no more sessions ({error}): free space or give more RAM.") from None
        del self._in_ram[kept]
        self._on_disk.add(kept)
        self.ram_bytes -= kept.nbytes
        self.disk_bytes += size
        kept.tensors, kept.path, kept.nbytes = None, path, size

    def read(self, kept: Kept) -> dict[str, Tensor]:
        """The tensors, which stay kept."""
        if kept.tensors is not None:
            return kept.tensors
        assert kept.path is not None
        try:
            return load(kept.path.read_bytes())  # load_file loses more than a kilobyte with each file it opens
        except (OSError, SafetensorError) as error:
            raise SnapshotError(
                f"the demoted session in {kept.path} cannot be read ({error}): resume a save."
            ) from None

    def share(self, kept: Kept) -> Kept:
        """One owner more."""
        kept.owners += 1
        return kept

    def drop(self, kept: Kept) -> None:
        """One owner less; the last takes it away."""
        kept.owners -= 1
        if kept.owners:
            return
        if kept.path is None:
            del self._in_ram[kept]
            self.ram_bytes -= kept.nbytes
            kept.tensors = None
        else:
            self._on_disk.remove(kept)
            self.disk_bytes -= kept.nbytes
            kept.path.unlink(missing_ok=True)

    def check(self, owned: list[Kept]) -> None:
        """Raise MemoryStateError unless counters, storages, files and owners agree."""
        ram = sum(size_of(k.tensors or {}) for k in self._in_ram)
        disk = sum(k.path.stat().st_size for k in self._on_disk if k.path is not None)
        owners = {k: owned.count(k) for k in set(owned)}
        known = {k: k.owners for k in (*self._in_ram, *self._on_disk)}
        if (ram, disk) != (self.ram_bytes, self.disk_bytes) or owners != known:
            raise MemoryStateError(
                f"kept rows have {ram} bytes in RAM and {disk} on disk, counted are {self.ram_bytes} and "
                f"{self.disk_bytes}; {len(owners)} are owned of {len(known)}: report this with the steps that led here."
            )
