"""penstock inspect: where the heads of a model look, in a table and in pictures."""

# ruff: noqa: RUF009
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from penstock.cli import inspect_plot
from penstock.cli.derive import Common, argument, option
from penstock.cli.options import PLOT_KINDS, can_plot, check_writable
from penstock.cli.output import Output, say
from penstock.errors import InputError, MissingExtra, PenstockError, UsageError
from penstock.io import TextSource, open_text
from penstock.models.inspect import Inspection, LayerHeads, Settings
from penstock.models.inspect import inspect as measure
from penstock.models.load import Model, load, parse_device, parse_dtype
from penstock.models.text_in import TextEncoder

PLOT = Path("penstock-inspect.png")


@dataclass(frozen=True)
class InspectOptions(Common):
    """Checked when made; raises UsageError with the fix."""

    model: str | None = argument(
        None, "A model: a hub name or a folder; without one, the tiny model shipped.", "[MODEL]"
    )
    input: str | None = option(
        None, "The text: a file, a folder, standard input (-) or a world (world:facts); without it, the held-out part "
        "of Python's standard library.", "FILE|-|DIR|world:NAME",
    )  # fmt: skip
    tokens: int = option(Settings.tokens, "Read so many tokens of the text.", "N")
    sinks: int = option(Settings.sinks, "How many tokens count as the first ones.", "S")
    window: int = option(Settings.window, "How many tokens count as the newest ones.", "W")
    epsilon: float = option(Settings.epsilon, "A key is a sink if its mean attention is above this.", "E")
    segment: int = option(Settings.segment, "Tokens of the random text that comes twice.", "M")
    seed: int = option(0, "Of the world that is read, and of the random text.", "S")
    device: str = option("cpu", "Where to run: cpu, cuda, mps, ...", "D")
    dtype: str | None = option(None, "float32, bfloat16 or float16.  [default: as the model is stored]", "T")
    plot: Path | None = option(None, f"Draw the heads to this file.  [default: {PLOT}, without --json]", "F")

    def __post_init__(self) -> None:
        self.settings()
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"--seed cannot be {self.seed}: give a whole number from 0 on.")
        parse_device(self.device)
        parse_dtype(self.dtype)
        if self.plot is not None:
            check_writable("--plot", self.plot)
            if self.plot.suffix.lower() not in PLOT_KINDS:
                raise UsageError(f"cannot draw {self.plot}: give a name that ends in {', '.join(PLOT_KINDS)}.")
            if not can_plot():
                raise MissingExtra("--plot", "plot")

    def settings(self) -> Settings:
        """What is measured; refused here if it cannot be."""
        return Settings(
            tokens=self.tokens, sinks=self.sinks, window=self.window, epsilon=self.epsilon, segment=self.segment,
            seed=self.seed,
        )  # fmt: skip


def inspect(options: InspectOptions) -> None:
    """Show sinks, locality and retrieval of every head of a model."""
    out = Output(options.json)
    source = open_text(options.input or "world:library", options.seed)
    model = load(options.model, dtype=options.dtype, device=options.device)
    tokens, prefix = read(source, model, options.tokens)
    with _progress(out) as progress:
        found = measure(
            model.attached, tokens, prefix, options.settings(),
            special=getattr(model.tokenizer, "all_special_ids", ()), context=model.context, progress=progress,
        )  # fmt: skip
    for note in source.notes:
        say(f"note: {note}")
    drawn = _picture(options)
    if drawn is not None:
        inspect_plot.draw(drawn, found, model.name)
    if out.as_json:
        plot = None if drawn is None else str(drawn)
        out.document({"model": model.name, "input": source.name, **found.document(), "plot": plot})
        return
    out.show(*_tables(model, source, found))
    if drawn is not None:
        out.write(f"plot: {drawn}\n")
    elif not can_plot():
        out.write(f"no picture: {MissingExtra('it', 'plot')}\n")


def read(source: TextSource, model: Model, limit: int) -> tuple[list[int], list[int]]:
    """At most `limit` token ids of a text, and the ids that the tokenizer puts before one."""
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer: text cannot be read with it.")
    encoder = TextEncoder(model.tokenizer)
    prefix, ids = list(encoder.prefix_ids), []
    for piece in source.pieces(1 << 12):
        ids += encoder.feed(piece)
        if len(ids) >= limit + len(prefix):
            break
    else:
        ids += encoder.flush()
    return ids[len(prefix) : limit + len(prefix)], prefix


@contextmanager
def _progress(out: Output) -> Iterator[Any]:
    """A bar on a terminal."""
    if not out.is_terminal:
        yield None
        return
    columns = (TextColumn("reading"), BarColumn(), TextColumn("{task.completed:,} tokens"), TimeRemainingColumn())
    with Progress(*columns, console=Console(), transient=True) as bar:
        task = bar.add_task("reading")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _picture(options: InspectOptions) -> Path | None:
    if options.plot is not None or options.json or not can_plot():
        return options.plot
    try:
        check_writable("the plot", PLOT)
    except PenstockError:
        return None
    return PLOT


def _tables(model: Model, source: TextSource, found: Inspection) -> list[Any]:
    """The layers, a line each, between what was read and what it means."""
    settings = found.settings
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    facts.add_row("model", Text(model.name))
    facts.add_row("input", Text(f"{source.name}, {settings.tokens:,} tokens in samples of {settings.length}"))
    facts.add_row(
        "sinks",
        f"{found.sink_rate[0]:.1%} of heads and prompts rest on the first token (importance above {settings.epsilon})"
        + (f"; {found.sinks_needed} first tokens hold 95% of all sinks" if found.sinks_needed else ""),
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    headings = (
        "layer", "importance", "sinks", f"first {settings.sinks}", f"newest {settings.window}", "far", "distance",
        "copy", "old mass", "retrieval heads",
    )  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "retrieval heads" else "right")
    for layer in found.layers:
        table.add_row(*_row(layer))
    note = Text(
        "Means over query heads; copy: the best head; old mass: the highest key-value head. importance: attention that "
        f"the first token gets in prompts of {settings.prompt}. far: neither first nor newest. copy: mass on the token "
        f"to copy when {settings.segment} random tokens come again.",
        style="dim",
    )
    return [facts, "", table, "", note]


def _row(layer: LayerHeads) -> list[str]:
    heads = layer.heads

    def mean(name: str) -> str:
        return f"{sum(getattr(head, name) for head in heads) / len(heads):.2f}"

    distance = sum(head.distance for head in heads) / len(heads)
    retrieving = sorted((h for h in heads if h.kind == "retrieval"), key=lambda h: -h.copy)
    names = ", ".join(f"{h.head} ({h.copy:.2f})" for h in retrieving[:4]) + (", ..." if len(retrieving) > 4 else "")
    return [
        str(layer.index), mean("importance"), mean("sink_rate"), mean("first"), mean("local"), mean("far"),
        f"{distance:.0f}", f"{max(layer.copy):.2f}", f"{max(layer.old_mass):.2f}", names or "-",
    ]  # fmt: skip
