"""Where streams come from.  A source gives bytes piece by piece; nothing here knows about models or sessions.

open_text("book.txt")        a file            open_text("-")              standard input, as it arrives
open_text("docs/")           a folder          open_text("world:facts")    an endless generated text
"""

from __future__ import annotations

from penstock.io.binary import TextCheck
from penstock.io.files import FileSource, FolderSource
from penstock.io.pipes import PipeSource
from penstock.io.source import TextSource
from penstock.io.where import open_text
from penstock.io.world import WORLDS, FactsSource, LibrarySource

__all__ = [
    "WORLDS",
    "FactsSource",
    "FileSource",
    "FolderSource",
    "LibrarySource",
    "PipeSource",
    "TextCheck",
    "TextSource",
    "open_text",
]
