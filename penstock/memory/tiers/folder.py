"""The folder of a disk tier: one pool at a time, one session, private to the user."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from penstock.errors import OutputError, SnapshotError
from penstock.memory.tiers.index import FORMAT, Index

_INDEX, _LOCK = "index.sqlite", "lock"


class Folder:
    """A locked folder and its index."""

    def __init__(self, path: Path, lock: int, index: Index) -> None:
        self.path, self.index, self._lock = path, index, lock

    @classmethod
    def create(cls, path: Path, session: str, generation: int, ram: int, disk: int, durable: bool) -> Folder:
        """Take a new or empty folder; raises OutputError if that cannot be done, SnapshotError if it is not empty.

        What a killed process left counts as empty if nothing of it can be recovered: the blocks of forks.
        """
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = _take_lock(path)
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            if (path / _INDEX).exists() and not _cleared(path):
                raise SnapshotError(
                    f"{path} holds the blocks of an earlier session: recover that one, or give another folder."
                )
            index = Index(path / _INDEX, create=True)
            index.describe({"session": session, "generation": generation, "ram": ram, "disk": disk, "durable": durable})
        except (OSError, sqlite3.Error) as error:
            os.close(lock)
            raise _unusable(path, error) from None
        except SnapshotError:
            os.close(lock)
            raise
        return cls(path, lock, index)

    @classmethod
    def existing(cls, path: Path, session: str, generation: int | None) -> tuple[Folder, dict[str, object]]:
        """Take a folder that a session left, and what it says of itself; raises SnapshotError if it is not its own."""
        if not (path / _INDEX).is_file():
            raise SnapshotError(f"there are no blocks in {path}: check the folder.")
        try:
            lock = _take_lock(path)
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            index = Index(path / _INDEX, create=False)
            meta = index.meta()
            if meta.get("format") != FORMAT:
                raise SnapshotError(
                    f"{path} has block format {meta.get('format')}, this version reads {FORMAT}: update penstock."
                )
            if meta["session"] != session:
                raise SnapshotError(f"{path} holds the blocks of another session: give the folder of this one.")
            if generation is not None and meta["generation"] != generation:
                raise SnapshotError(
                    f"{path} is at generation {meta['generation']} and not at {generation}, the session went on "
                    "elsewhere: use the snapshot that belongs to it."
                )
        except (sqlite3.Error, ValueError, KeyError) as error:
            os.close(lock)
            raise SnapshotError(f"the index in {path} is damaged ({error}): start with another folder.") from None
        except SnapshotError:
            os.close(lock)
            raise
        return cls(path, lock, index), meta

    def close(self, *, delete: bool) -> None:
        """Let the folder go; with `delete`, without leaving anything of ours in it."""
        self.index.close()
        if delete:
            for path in (*_own(self.path), self.path / _LOCK):
                with contextlib.suppress(OSError):
                    path.unlink()
            with contextlib.suppress(OSError):
                self.path.rmdir()  # only if it is empty
        os.close(self._lock)


def _cleared(path: Path) -> bool:
    """Delete what nobody can recover any more, under the lock; False, and nothing is deleted, if something could be."""
    index = Index(path / _INDEX, create=False)
    try:
        if index.stores():
            return False
    finally:
        index.close()
    for old in [*path.glob("*-*.blocks"), *_own(path)]:
        old.unlink(missing_ok=True)
    return True


def _own(path: Path) -> list[Path]:
    """The files of the index."""
    return [path / f"{_INDEX}{end}" for end in ("", "-wal", "-shm")]


def _take_lock(path: Path) -> int:
    """A descriptor that holds the folder's lock, also against other pools of this process."""
    import fcntl  # the disk tier is for systems that have it

    handle = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise SnapshotError(f"{path} is in use by another session: give this one a folder of its own.") from None
    except OSError:
        os.close(handle)
        raise
    return handle


def _unusable(path: Path, error: Exception) -> OutputError:
    reason = getattr(error, "strerror", None) or str(error)
    return OutputError(f"the folder {path} cannot be used for blocks ({reason}): choose another place.")
