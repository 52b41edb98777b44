"""Text from a file, and from all text files of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from penstock.errors import InputError
from penstock.io.binary import HEAD, TextCheck


class FileSource:
    """One file, from its beginning to its end."""

    is_endless = False

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self.notes: list[str] = []
        head = _head(path)
        if not head:
            raise InputError(f"{path} is empty: give a file with some text.")
        TextCheck(self.name).push(head, end=len(head) < HEAD)

    def pieces(self, size: int) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                while data := file.read(size):
                    yield data
        except OSError as error:
            raise _unreadable(self.path, error) from None


class FolderSource:
    """The text files of a folder: those in it by name, then those of its subfolders by name.

    Hidden files and folders are left out, links to folders are not followed, binary and unreadable files are skipped
    with a note.  A file that does not end with a line end gets one, so that the next one begins a line.
    """

    is_endless = False

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._skipped: list[str] = []
        if next(self._texts(), None) is None:
            raise InputError(f"the folder {path} has no text files: give one that has some, or a file.")
        self._skipped = []

    @property
    def notes(self) -> list[str]:
        if not self._skipped:
            return []
        names = ", ".join(self._skipped[:3]) + (", ..." if len(self._skipped) > 3 else "")
        count = len(self._skipped)
        return [f"skipped {count} file{'s' if count > 1 else ''} of {self.path} that cannot be read as text: {names}."]

    def pieces(self, size: int) -> Iterator[bytes]:
        self._skipped = []
        for path in self._texts():
            last = b"\n"
            try:
                with path.open("rb") as file:
                    while data := file.read(size):
                        last = data[-1:]
                        yield data
            except OSError:
                self._skipped.append(path.name)
            if last != b"\n":
                yield b"\n"

    def _texts(self) -> Iterator[Path]:
        for folder, inner, names in os.walk(self.path):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder, name)
                if name.startswith(".") or not path.is_file():
                    continue
                try:
                    head = _head(path)
                    TextCheck(name).push(head, end=len(head) < HEAD)
                except InputError:
                    self._skipped.append(str(path.relative_to(self.path)))
                    continue
                if head:
                    yield path


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be read ({error.strerror}): check the path and its permissions.")
