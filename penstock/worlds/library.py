"""The text that every Python installation carries: sources of the standard library and the help topics of pydoc.

A fixed hash of the module's name holds a tenth of the modules out of training. Tests and generated code tables are
left out. The text differs a little between Python versions; the split does not.
"""

from __future__ import annotations

import importlib
import sysconfig
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from penstock.errors import InputError

_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "__pycache__", "__phello__"}
_SKIPPED_FILES = {"pydoc_data/topics.py"}  # read as topics below


class Document(NamedTuple):
    """One module or help topic: its dotted name and its text."""

    name: str
    text: str


def is_heldout(name: str) -> bool:
    """Whether a module of this dotted name is kept out of training (one in ten is)."""
    return zlib.crc32(name.encode()) % 10 == 0


@cache
def _documents() -> tuple[Document, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED.intersection(relative.parts) or relative.as_posix() in _SKIPPED_FILES:
            continue
        if relative.parts[0].startswith(("config-", "lib-dynload")):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if text.strip():
            found.append(Document(".".join(relative.with_suffix("").parts), text.strip() + "\n"))
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        topics = {}
    found += [Document(f"pydoc_data.topics.{key}", topics[key].strip() + "\n") for key in sorted(topics)]
    return tuple(found)


def documents(heldout: bool) -> list[Document]:
    """All modules and topics of one side of the split, in order of their names.

    Raises:
        InputError: this Python carries no readable sources.
    """
    chosen = [document for document in _documents() if is_heldout(document.name) == heldout]
    if not chosen:
        raise InputError("this Python carries no library sources: use an installation that keeps its .py files.")
    return chosen


def training_text() -> Iterator[str]:
    """The training documents, once each."""
    return (document.text for document in documents(heldout=False))


def heldout_text(num_chars: int | None = None) -> Iterator[str]:
    """The held-out documents: once each, or repeated until `num_chars` characters were given (the last one is cut)."""
    texts = [document.text for document in documents(heldout=True)]
    if num_chars is None:
        yield from texts
        return
    left = num_chars
    while left > 0:
        for text in texts:
            yield text[:left]
            left -= len(text)
            if left <= 0:
                return
