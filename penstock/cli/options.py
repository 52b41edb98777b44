"""What `penstock run` can be told.  The command's options are these fields; a wrong one is refused before any work."""

# ruff: noqa: RUF009
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from penstock.cli.derive import Common, argument, option
from penstock.core import Budget
from penstock.errors import MissingExtra, OutputError, UnknownName, UsageError
from penstock.methods import parse
from penstock.models.load import parse_device, parse_dtype
from penstock.models.paths import PATHS

DEFAULT_MEMORY = "streaming-llm"
LIBRARY_TOKENS = 200_000  # how much of the library is read without --tokens: it has no end
PLOT_KINDS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
TOUR_PLOT = Path("penstock-run.png")


@dataclass(frozen=True)
class RunOptions(Common):
    """Checked when made; raises UsageError with the fix."""

    model: str | None = argument(
        None, "A model: a hub name or a folder; without one, the tiny model shipped.", "[MODEL]"
    )
    input: str | None = option(
        None, "What to read: a file, a folder, standard input (-) or a world (world:facts); "
        "without it, the held-out part of Python's standard library.", "FILE|-|DIR|world:NAME",
    )  # fmt: skip
    tokens: int | None = option(None, "Read at most so many tokens (of the library: 200000).", "N")
    chunk: int | None = option(None, "Tokens per step; results do not depend on it.  [default: 64]", "C")
    memory: str | None = option(
        None, "A memory and its options; penstock methods lists them.  [default: streaming-llm]",
        "NAME[:key=value,...]",
    )  # fmt: skip
    budget: str | None = option(
        None, "Entries per layer and key-value head (4096), or bytes (64MiB).  [default: half the model's context, "
        "at most 4096]", "N",
    )  # fmt: skip
    ask: str | None = option(None, "Ask this at the end of the input.", "TEXT")
    max_new: int = option(128, "Tokens of the answer at most.", "N")
    save: Path | None = option(None, "Write the session to this file at the end, also when interrupted.", "F")
    resume: Path | None = option(None, "Go on with a session from this file.", "F")
    device: str = option("cpu", "Where to run: cpu, cuda, mps, ...", "D")
    dtype: str | None = option(None, "float32, bfloat16 or float16.  [default: as the model is stored]", "T")
    seed: int = option(0, "Of the world that is read, and of the answer.", "S")
    path: str = option("auto", f"How decode steps run: {', '.join(PATHS)}.", "P")
    explain: bool = option(False, "Say which path the steps took, and why.")
    plot: Path | None = option(None, "Draw loss, latency and memory against the position in the stream.", "F")

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("chunk", 1), ("max_new", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value < 1 << 63:
                raise UsageError(f"--{name.replace('_', '-')} cannot be {value}: give a whole number from {least} on.")
        if self.path not in PATHS:
            raise UnknownName("path", self.path, PATHS)
        if self.device == "meta":
            raise UsageError("the device 'meta' computes nothing: try --device cpu.")
        parse_device(self.device)
        parse_dtype(self.dtype)
        method = parse(self.memory or DEFAULT_MEMORY)
        if self.budget is not None and Budget.parse(self.budget).entries is not None and method.needs_budget:
            method.cascade(Budget.parse(self.budget).entries)  # raises BudgetError when it is too small
        if self.resume is not None and not self.resume.is_file():
            raise UsageError(f"there is no snapshot {self.resume}: check the path.")
        if self.ask is not None and not self.ask:
            raise UsageError("--ask cannot be empty: write a question.")
        for name in ("save", "plot"):
            target: Path | None = getattr(self, name)
            if target is not None:
                check_writable(f"--{name}", target)
        if self.plot is not None:
            if self.plot.suffix.lower() not in PLOT_KINDS:
                raise UsageError(f"cannot draw {self.plot}: give a name that ends in {', '.join(PLOT_KINDS)}.")
            if not can_plot():
                raise MissingExtra("--plot", "plot")

    @property
    def is_tour(self) -> bool:
        """The run without arguments: three memories side by side on the same text, and a picture of them."""
        chosen = (self.model, self.input, self.memory, self.resume, self.ask)
        return all(value is None for value in chosen) and (not self.json or self.plot is not None)

    @property
    def only_asks(self) -> bool:
        """A resumed session that is asked without reading more."""
        return self.resume is not None and self.ask is not None and self.input is None and self.tokens is None

    @property
    def limit(self) -> int | None:
        """Tokens to read at most."""
        return LIBRARY_TOKENS if self.tokens is None and self.input is None else self.tokens


def check_writable(what: str, path: Path) -> None:
    """Raise before hours of work, not after them."""
    folder = path.absolute().parent
    if path.is_dir():
        raise UsageError(f"{what} {path} is a folder: give a file name.")
    if path.exists() and not path.is_file():
        raise UsageError(f"{what} {path} is not a file: give a file name.")
    if not folder.is_dir():
        raise UsageError(f"{what} {path}: there is no folder {folder}, make it first.")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{what} {path}: the folder {folder} cannot be written, choose another one.")


def can_plot() -> bool:
    """Whether the plot extra is installed."""
    import importlib.util

    return importlib.util.find_spec("matplotlib") is not None
