"""Progress of a run: a dashboard on a terminal, lines on standard error elsewhere, documents with --json."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from penstock.cli.output import Output, closed_or_failed, say
from penstock.cli.reading import Reading
from penstock.cli.summary import Moment, ResidentSet, lanes_table, moment, number, size
from penstock.meter import Bins

_BLOCKS = "▁▂▃▄▅▆▇█"


class View(Protocol):
    """Shows a moment of a run."""

    every: float  # seconds between two updates

    def show(self, reading: Reading, now: Moment) -> None:
        """Once per `every` seconds at most."""


class Ticker:
    """Calls a view when it is time; costs a clock reading per step otherwise."""

    def __init__(self, view: View, reading: Reading, resident: ResidentSet) -> None:
        self._view, self._reading, self._resident = view, reading, resident
        self._next = time.monotonic() + min(1.0, view.every)

    def tick(self) -> None:
        self._resident.look()
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._view.every
            self._view.show(self._reading, moment(self._reading, self._resident))


class JsonView:
    """A progress document per second."""

    every = 1.0

    def __init__(self, out: Output) -> None:
        self._out = out

    def show(self, reading: Reading, now: Moment) -> None:
        self._out.document({"progress": now._asdict()})


class LineView:
    """A line on standard error every few seconds."""

    every = 5.0

    def show(self, reading: Reading, now: Moment) -> None:
        of = f" of {reading.limit:,}" if reading.limit else ""
        say(
            f"{now.tokens:,}{of} tokens, {now.tokens_per_second:,.0f} per second, loss {number(now.nll_now)}, "
            f"stored {size(now.memory_bytes)}, resident {size(now.rss_bytes)}, {now.path}"
        )


class Dashboard:
    """Drawn over itself four times per second."""

    every = 0.25

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, reading: Reading, now: Moment) -> None:
        try:
            self._live.update(dashboard(reading, now), refresh=True)
        except OSError as error:
            raise closed_or_failed(error) from None


@contextmanager
def view_for(out: Output) -> Iterator[View]:
    """The view that suits where standard output goes."""
    if out.as_json:
        yield JsonView(out)
    elif not out.is_terminal:
        yield LineView()
    else:
        console = Console(highlight=False)
        with Live(Text("loading ..."), console=console, auto_refresh=False, transient=True) as live:
            yield Dashboard(live)


def dashboard(reading: Reading, now: Moment) -> RenderableType:
    """One screen of a run."""
    session = reading.main.session
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    entries = f", {session.budget} entries" if session.budget else ""
    table.add_row("reads", Text(reading.source.name))
    table.add_row("tokens", _progress(reading, now))
    table.add_row("speed", f"{now.tokens_per_second:,.0f} tokens per second")
    loss = f"{number(now.nll_now)} now, {number(now.nll_mean)} over the stream"
    table.add_row("loss", Group(Text(loss), Text(sparkline(session.meter.nll), style="cyan")))
    table.add_row("step", f"p50 {number(now.step_ms['p50'], 1)} ms   p99 {number(now.step_ms['p99'], 1)} ms")
    table.add_row("memory", _memory(now))
    table.add_row("resident", size(now.rss_bytes))
    table.add_row("path", Text(now.path))
    parts: list[RenderableType] = [table]
    if len(reading.lanes) > 1:
        parts += [Text(), lanes_table(reading.lanes)]
    title = f"penstock · {session.model.name} · {session.method}{entries}"
    return Panel(Group(*parts), title=Text(title), subtitle="Ctrl-C ends with a summary", expand=False)


def _progress(reading: Reading, now: Moment) -> RenderableType:
    waits = "   waiting for input" if reading.waits else ""
    if reading.limit is None:
        return Text(f"{now.tokens:,}{waits}")
    row = Table.grid(padding=(0, 2))
    row.add_row(
        ProgressBar(total=reading.limit, completed=now.tokens, width=30), f"{now.tokens:,} of {reading.limit:,}{waits}"
    )
    return row


def _memory(now: Moment) -> RenderableType:
    if now.budget_bytes is None:
        return Text(f"{size(now.memory_bytes)}, growing")
    row = Table.grid(padding=(0, 2))
    row.add_row(
        ProgressBar(total=now.budget_bytes, completed=now.memory_bytes, width=30),
        f"{size(now.memory_bytes)} of {size(now.budget_bytes)}",
    )
    return row


def sparkline(bins: Bins, width: int = 60) -> str:
    """Means over the stream as a line of blocks, lowest to highest."""
    means = [mean for _, _, mean in bins.means()]
    if len(means) < 2:
        return ""
    share = max(1.0, len(means) / width)
    picked = [means[int(i * share)] for i in range(min(width, len(means)))]
    low, high = min(picked), max(picked)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in picked)
