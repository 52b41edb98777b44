"""Result rows on disk: one file per pass and budget, so that a comparison goes on where it ended.

A row's file is named by a hash of all that it depends on: the model's fingerprint, the method with all its options, the
budget, the stream's tokens, the questions, the chunk, the device and number type, and the source code that made it.
Files are written beside their place and renamed; one that cannot be read counts as absent.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from penstock.errors import OutputError
from penstock.methods import Method

SCHEMA = 1
SHIPPED = Path(__file__).parent / "shipped.json"


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/penstock/compare`."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home else Path.home() / ".cache") / "penstock" / "compare"


@cache
def _shared_code() -> str:
    """A hash of the source that every pass runs through: all but the methods, the command line and the like."""
    package = Path(__file__).parents[1]
    digest = hashlib.blake2b(digest_size=16)
    for room in ("core.py", "session.py", "memory", "models", "compare", "methods/base.py"):
        path = package / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(package)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def code_version(method: Method | None = None) -> str:
    """A hash of the code behind a row; a change in one method leaves the rows of the others."""
    file = importlib.import_module(type(method).__module__).__file__ if method is not None else None
    own = Path(file).read_bytes() if file else b""
    return hashlib.blake2b(_shared_code().encode() + own, digest_size=16).hexdigest()


def finite(value: Any) -> Any:
    """The value with None for numbers that JSON cannot say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return value


class Cache:
    """Rows by what they depend on.  `fresh` finds nothing and still keeps."""

    def __init__(self, folder: Path | None = None, fresh: bool = False) -> None:
        self.folder, self.fresh = folder or default_folder(), fresh
        self.trouble: str | None = None  # why rows could not be kept

    def path(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps({"schema": SCHEMA, **key}, sort_keys=True)
        return self.folder / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.json"

    def get(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row, if there is one that can be read."""
        found = None if self.fresh else _stored(self.path(key))
        return None if found is None else found["row"]

    def put(self, key: Mapping[str, Any], row: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Keep a row with what it is about; where that fails, say so once and go on."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            document = {"schema": SCHEMA, "key": dict(key), "made": time.time(), **about, "row": finite(row)}
            _write(self.path(key), json.dumps(document))
        except OSError as error:
            self.trouble = (
                f"results could not be kept in {self.folder} ({error.strerror}): free space or give --cache DIR."
            )

    def rows(self) -> Iterator[dict[str, Any]]:
        """All stored documents, oldest first."""
        found = [_stored(path) for path in self.folder.glob("*.json")] if self.folder.is_dir() else []
        yield from sorted((each for each in found if each is not None), key=lambda each: float(each["made"]))


def _stored(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        whole = found["schema"] == SCHEMA and isinstance(found["row"]["recall"], list) and float(found["made"]) > 0
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole else None


def _write(path: Path, text: str) -> None:
    """All of it or nothing."""
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def stored_rows(folder: Path | None = None, shipped: Path = SHIPPED) -> list[dict[str, Any]]:
    """Rows to choose from, each with its `model` and `stream`: those of the package, then those of the cache.

    Of rows with the same model, memory, budget and stream the newest stays.  `shipped` is the last document of
    `penstock compare ... --json`.
    """
    rows: list[dict[str, Any]] = []
    if shipped.is_file():
        try:
            document = json.loads(shipped.read_text(encoding="utf-8"))
            about = {"model": document["model"], "stream": document["stream"]}
            rows += [{**row, **about} for row in document["rows"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{shipped} cannot be read ({error}): install penstock again.") from None
    rows += [{**each["row"], "model": each["model"], "stream": each["stream"]} for each in Cache(folder).rows()]
    newest = {(row["model"], row["memory"], row["budget"], row["stream"], row["tokens"]): row for row in rows
              if not row.get("error")}  # fmt: skip
    return list(newest.values())
