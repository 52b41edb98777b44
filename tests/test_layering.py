"""The order of imports drawn in docs/architecture.md: who may know whom, read from the source.

Imports inside functions and under TYPE_CHECKING count: they are knowledge too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "penstock"

BASE = {"core", "errors", "cost", "registry"}
SLOTS = {"memory", "stages", "reducers", "triggers", "rollout"}
SESSION = {"cache", "session", "reply", "snapshot", "log", "meter", "spans", "seeing", "rewind", "report", "engine"}
TOP = {"aio", "client", "io", "serve", "cli", "testing", "worlds"}

# room -> rooms that it may import (itself always)
ALLOWED: dict[str, set[str]] = {
    "core": {"errors"},
    "errors": set(),
    "cost": {"core", "errors"},
    "registry": {"errors"},
    **dict.fromkeys(SLOTS, BASE),
    "kernels": BASE | {"memory"},
    "methods": BASE | SLOTS,
    "models": BASE | SLOTS | {"kernels"},
    **{part: BASE | SLOTS | SESSION | {"methods", "models"} for part in SESSION},
    "io": BASE | {"models", "worlds"},
    "worlds": {"core", "errors", "models"},  # models: the training of the tiny ones
    "aio": BASE | SESSION | {"methods", "models"},
    "client": {"errors"},
    "testing": BASE | SESSION | {"models", "serve", "client"},
    "compare": BASE | SLOTS | SESSION | {"methods", "models", "io", "worlds", "watch"},
    "serve": BASE | SLOTS | SESSION | {"methods", "models", "io"},
    "live": BASE | SLOTS | SESSION | {"methods", "models"},
    "watch": BASE | SLOTS | SESSION | {"live"} | {"methods", "models", "io", "worlds"},
    "cli": BASE
    | SLOTS
    | SESSION
    | {"methods", "models", "io", "compare", "serve", "worlds", "testing", "client", "watch"},
}


class Import(NamedTuple):
    """One import statement of ours."""

    file: Path
    line: int
    module: str  # dotted, without the package's name; "" is the package itself

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports penstock.{self.module}".rstrip(".")


def imports_of(source: str, file: Path, root: Path) -> Iterator[Import]:
    """What a file of the package imports from the package; `from penstock import x` is penstock.x if x is a room."""
    rooms = {path.stem for path in root.iterdir()}
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            names = [node.module or ""]
            if node.module in ("penstock", "penstock.methods"):
                within = rooms if node.module == "penstock" else {p.stem for p in (root / "methods").iterdir()}
                names = [f"{node.module}.{a.name}" if a.name in within else node.module for a in node.names]
        for name in dict.fromkeys(names):
            if name == "penstock" or name.startswith("penstock."):
                yield Import(file, node.lineno, name.partition(".")[2])


def faults(source: str, file: Path, root: Path = PACKAGE) -> list[str]:
    """The import lines of a file that break the order."""
    parts = file.with_suffix("").parts
    room, out = parts[0], []
    for found in imports_of(source, file, root):
        target = found.module.split(".")[0]
        if target == room and room == "methods":
            leaf = found.module.split(".")[1:2]
            if len(parts) > 1 and parts[1] not in ("__init__", "base") and leaf != ["base"]:
                out.append(f"{found}: a method may import methods.base and no other method")
        elif target == "":
            if room not in TOP:
                out.append(f"{found}: import the room that defines the name, not the public face")
        elif target != room and target not in ALLOWED[room]:
            out.append(f"{found}: {room} may import {', '.join(sorted(ALLOWED[room])) or 'nothing of ours'}")
    return out


FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
ROOMS = sorted({file.with_suffix("").parts[0] for file in FILES} - {"__init__", "__main__"})


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_order(room: str) -> None:
    assert room in ALLOWED, f"penstock/{room} is new: say here what it may import"
    files = [file for file in FILES if file.with_suffix("").parts[0] == room]
    found = [fault for file in files for fault in faults((PACKAGE / file).read_text(), file)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("memory/ring.py", "from penstock.models.attach import Attached"),
        ("memory/ring.py", "from penstock.stages import conv"),
        ("memory/ring.py", "import penstock.session"),
        ("methods/window.py", "from penstock.methods.dense import Dense"),
        ("methods/window.py", "from penstock.methods import dense"),
        ("methods/window.py", "from penstock.methods import registry"),
        ("methods/window.py", "from penstock.models import attach"),
        ("models/attach.py", "from penstock.methods import parse"),
        ("models/attach.py", "def f():\n    from penstock.methods.base import Method"),
        ("models/attach.py", "from penstock import session"),
        ("session.py", "from penstock.cli import main"),
        ("session.py", "from penstock import open"),
        ("worlds/facts.py", "from penstock.memory import Memory"),
        ("core.py", "from penstock.memory import Memory"),
        ("errors.py", "from penstock.core import Span"),
        ("io/files.py", "from penstock.session import Session"),
    ],
)
def test_a_forbidden_import_is_found(file: str, line: str) -> None:
    [found] = faults(f"import os\n{line}\n", Path(file))
    assert found.startswith(f"{file}:{3 if 'def' in line else 2} imports penstock")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("methods/window.py", "from penstock.methods.base import Method"),
        ("methods/window.py", "from penstock.memory import Cascade"),
        ("methods/__init__.py", "from penstock.methods.base import Method"),
        ("memory/ring.py", "from penstock.core import Span"),
        ("worlds/train.py", "from penstock.models.load import load"),
        ("cli/run.py", "import penstock"),
        ("session.py", "from penstock.methods import parse"),
    ],
)
def test_an_allowed_import_is_not(file: str, line: str) -> None:
    assert faults(line, Path(file)) == []
