"""Where one session is kept: a description, at most one snapshot, and the journal of what came since.

DIR/sessions/ID/about.json     who, what with, and which snapshot and records count
DIR/sessions/ID/snapshot-N     a session that has read all records below N
DIR/sessions/ID/journal-N      records from N on
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from penstock.errors import OutputError, SnapshotError
from penstock.serve.journal import Journal, sync_folder, write_json

FORMAT = 2


class Folder:
    """The files of one session; not safe for threads, its owner has a lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = Journal(path)
        self.about: dict[str, Any] = {}

    @classmethod
    def make(cls, path: Path, about: dict[str, Any]) -> Folder:
        """A new session's folder."""
        folder = cls(path)
        try:
            path.mkdir(mode=0o700)
        except OSError as error:
            raise OutputError(f"the folder {path} cannot be made ({error.strerror}): free space.") from None
        sync_folder(path.parent)
        folder._describe({**about, "format": FORMAT, "first": 0, "snapshot": None})
        return folder

    @classmethod
    def found(cls, path: Path) -> Folder:
        """The folder of a session of an earlier run; raises SnapshotError when it cannot be understood."""
        folder = cls(path)
        try:
            folder.about = json.loads((path / "about.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SnapshotError(f"{path / 'about.json'} cannot be read ({error}): restore it from a copy.") from None
        if folder.about.get("format") != FORMAT:
            raise SnapshotError(f"{path} was written by another version of penstock: use that one.")
        return folder

    def _describe(self, about: dict[str, Any]) -> None:
        write_json(self.path / "about.json", about)
        self.about = about

    @property
    def first(self) -> int:
        """The first record that is not in the snapshot."""
        return int(self.about["first"])

    @property
    def snapshot(self) -> Path | None:
        """The snapshot to begin with."""
        return None if self.about["snapshot"] is None else self.path / self.about["snapshot"]

    def next_snapshot(self) -> Path:
        """Where to write a snapshot of now; what comes next goes to a new file of the journal."""
        return self.path / f"snapshot-{self.journal.rotate():012d}"

    def use(self, snapshot: Path, tally: dict[str, Any], ingested: int) -> None:
        """The snapshot is written: from here on it counts, and what it replaces is deleted."""
        first = int(snapshot.name.removeprefix("snapshot-"))
        self._describe({**self.about, "first": first, "snapshot": snapshot.name, "tally": tally, "ingested": ingested})
        for old in self.path.glob("snapshot-*"):
            if old != snapshot:
                old.unlink()
        self.journal.drop(first)

    def copy(self, path: Path, about: dict[str, Any]) -> Folder:
        """A second folder with the same past.  Closed files never change, so they are shared where that can be done."""
        self.journal.rotate()
        other = Folder(path)
        try:
            path.mkdir(mode=0o700)
            for file in [*self.path.glob("journal-*"), *([self.snapshot] if self.snapshot else [])]:
                try:
                    os.link(file, path / file.name)
                except OSError:
                    shutil.copyfile(file, path / file.name)
                    with (path / file.name).open("rb") as copied:
                        os.fsync(copied.fileno())
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise OutputError(f"the folder {path} cannot be made ({error.strerror}): free space.") from None
        other._describe({**self.about, **about})
        sync_folder(path.parent)
        other.journal.next, other.journal.bytes = self.journal.next, self.journal.bytes
        return other

    def delete(self) -> None:
        """Nothing of the session stays."""
        self.journal.close()
        gone = self.path.with_name(f".gone-{self.path.name}")
        with contextlib.suppress(OSError):
            os.rename(self.path, gone)
            sync_folder(self.path.parent)
        shutil.rmtree(gone, ignore_errors=True)
