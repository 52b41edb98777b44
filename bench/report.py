"""How is a result shown? A table for people on stderr or stdout, a picture, and one JSON document as the last line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text, the first left-aligned, the others right-aligned."""
    lines = [list(headings), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]

    def shown(line: Sequence[str]) -> str:
        first = line[0].ljust(widths[0])
        return "  ".join([first, *[cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]]).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([shown(lines[0]), rule, *[shown(line) for line in lines[1:]]])


def count(number: int) -> str:
    """Positions as people write them: 1k, 64k, 1M."""
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if number >= size and number % size == 0:
            return f"{number // size}{unit}"
    return str(number)


def megabytes(number: float) -> str:
    return f"{number / 1e6:.1f} MB"


def say(text: str = "") -> None:
    """A line for people, on stdout, before the last line."""
    print(text, flush=True)


def finish(document: dict[str, Any], path: Path | None) -> None:
    """Print the document as the last line, and keep a readable copy when a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        print(f"written: {path}", file=sys.stderr)
    print(json.dumps(document), flush=True)


def figure(panels: int, width: float = 6.0, height: float = 4.2) -> tuple[Any, list[Any]]:
    """A matplotlib figure with panels side by side, drawn without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(1, panels, figsize=(width * panels, height), squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    return drawing, list(axes[0])


def save_figure(drawing: Any, path: Path) -> None:
    """Write the picture as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.tight_layout()
    drawing.savefig(path, dpi=130)
    print(f"written: {path}", file=sys.stderr)
