"""From what a caller writes to a source."""

from __future__ import annotations

import re
from pathlib import Path

from penstock.errors import InputError, UnknownName
from penstock.io.files import FileSource, FolderSource
from penstock.io.pipes import PipeSource
from penstock.io.source import TextSource
from penstock.io.world import WORLDS


def open_text(where: str, seed: int = 0) -> TextSource:
    """The source that `where` names: a file, a folder, a named pipe, `-` or `world:NAME` (made from `seed`).

    Raises InputError for what is missing, empty or not text, UnknownName for a world that does not exist.
    """
    if where == "-":
        return PipeSource()
    if where.startswith("world:"):
        name = where.removeprefix("world:")
        if name not in WORLDS:
            raise UnknownName("world", name, WORLDS)
        return WORLDS[name](seed)
    if re.match(r"[a-z]+://", where):
        raise InputError(f"{where} is an address: fetch it first, as in curl ADDRESS | penstock run --input -.")
    path = Path(where)
    try:
        if where and path.is_dir():
            return FolderSource(path)
        if not where or not path.exists():
            raise InputError(f"there is no file or folder {where!r}: check the path.")
        return FileSource(path) if path.is_file() else PipeSource(path)
    except (OSError, ValueError) as error:  # a name that no file can have
        raise InputError(f"there is no file or folder {where[:80]!r} ({error}): check the path.") from None
