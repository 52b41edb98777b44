"""What leaves a command: JSON documents or text on standard output, sentences on standard error."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console, RenderableType

from penstock.errors import OutputError


class ClosedOutput(Exception):
    """Nobody reads standard output any more (`| head`): there is nothing left to say."""


def plain(value: Any) -> Any:
    """The value with everything that JSON cannot say (nan, infinities, tuples) as what it can."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in value]
    return value


class Output:
    """Standard output of one command; every write is flushed."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at standard output."""
        return bool(sys.stdout and sys.stdout.isatty()) and os.environ.get("TERM") != "dumb" and not self.as_json

    def document(self, value: Mapping[str, Any]) -> None:
        """One JSON document on a line of its own."""
        self.write(json.dumps(plain(value), ensure_ascii=True, allow_nan=False) + "\n")

    def write(self, text: str) -> None:
        """Text as it is, at once; raises ClosedOutput when nobody reads, OutputError when it cannot be kept."""
        if sys.stdout is None:
            return
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except UnicodeEncodeError:
            encoding = sys.stdout.encoding or "ascii"
            self.write(text.encode(encoding, "replace").decode(encoding))
        except OSError as error:
            raise closed_or_failed(error) from None

    def show(self, *renderables: RenderableType) -> None:
        """Tables and the like, as wide as the terminal; elsewhere plain lines."""
        console = Console(width=None if self.is_terminal else 100, highlight=False)
        with console.capture() as captured:
            for renderable in renderables:
                console.print(renderable)
        self.write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def closed_or_failed(error: OSError) -> Exception:
    """What a failed write to standard output means."""
    if isinstance(error, BrokenPipeError) or error.errno == 5:  # EIO: the terminal has gone
        return ClosedOutput()
    return OutputError(f"standard output cannot be written ({error.strerror}): check where it goes.")


def say(sentence: str, stream: TextIO | None = None) -> None:
    """A sentence on standard error; a closed one is no reason to fail."""
    target = stream or sys.stderr
    if target is None:
        return
    try:
        target.write(sentence.rstrip("\n") + "\n")
        target.flush()
    except (OSError, ValueError):
        return
    except UnicodeEncodeError:
        target.write(sentence.encode("ascii", "replace").decode() + "\n")


def abandon_stdout() -> None:
    """Let the interpreter's own flush at exit go nowhere."""
    try:
        void = os.open(os.devnull, os.O_WRONLY)
        os.dup2(void, sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        sys.stdout = None
