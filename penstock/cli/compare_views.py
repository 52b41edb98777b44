"""What a comparison shows: progress while it runs, tables at its end."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from penstock.cli.output import Output, closed_or_failed, say
from penstock.cli.summary import number, size
from penstock.compare import Comparison, Progress

Row = Mapping[str, Any]


class View(Protocol):
    """Shows a moment of a comparison; called after every step, so it looks at the clock itself."""

    def show(self, now: Progress) -> None:
        """Show it if it is time."""


class _Timed(ABC):
    """Calls `tell` every so many seconds per memory."""

    every = 1.0

    def __init__(self) -> None:
        self._next: dict[int, float] = {}  # by job: several may be under way

    def show(self, now: Progress) -> None:
        moment = time.monotonic()
        if moment >= self._next.get(now.job, 0.0):
            self._next[now.job] = moment + self.every
            self.tell(now)

    @abstractmethod
    def tell(self, now: Progress) -> None:
        """Show it now."""


class JsonView(_Timed):
    """A progress document per second."""

    def __init__(self, out: Output) -> None:
        super().__init__()
        self._out = out

    def tell(self, now: Progress) -> None:
        self._out.document({"progress": asdict(now)})


class LineView(_Timed):
    """A line on standard error every few seconds."""

    every = 5.0

    def tell(self, now: Progress) -> None:
        say(f"{now.job + 1} of {now.jobs}: {_name(now)}, {_state(now)}")


class BarView(_Timed):
    """A bar per memory."""

    every = 0.2

    def __init__(self, bars: Bars) -> None:
        super().__init__()
        self._bars = bars
        self._tasks: dict[int, TaskID] = {}

    def tell(self, now: Progress) -> None:
        try:
            if now.job not in self._tasks:
                self._tasks[now.job] = self._bars.add_task(Text(_name(now)).plain, total=now.total, state="")
            self._bars.update(self._tasks[now.job], completed=now.tokens, state=_state(now))
        except OSError as error:
            raise closed_or_failed(error) from None


def _name(now: Progress) -> str:
    return now.memory + (f" ({now.budget})" if now.budget else "")


def _state(now: Progress) -> str:
    speed = f"{now.tokens:,} of {now.total:,} {now.unit}, {now.tokens_per_second:,.0f} per second"
    if now.tokens_per_second == 0:
        speed = f"{now.asked} questions"
    return speed + (f", recall {now.recall:.2f}" if now.recall is not None else "")


@contextmanager
def view_for(out: Output) -> Iterator[View]:
    """The view that suits where standard output goes."""
    if out.as_json:
        yield JsonView(out)
    elif not out.is_terminal:
        yield LineView()
    else:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[state]}"))
        with Bars(*columns, console=Console(highlight=False), transient=True) as bars:
            yield BarView(bars)


def compare_tables(comparison: Comparison) -> list[RenderableType]:
    """Recall by distance, then what it costs, per budget."""
    out: list[RenderableType] = []
    for given in dict.fromkeys(map(str, comparison.budgets)):
        rows = [row for row in comparison.rows if _is_of(row, given)]
        beside = [row for row in comparison.baselines if _is_of(row, given)]
        if not rows and not beside:
            continue
        out += [""] if out else []
        if any(row["recall"] for row in [*rows, *beside]):
            out += [*_recall_table(given, rows, beside), ""]
        out += _cost_table(given, rows) if rows else []
    return out


def _is_of(row: Row, given: str) -> bool:
    return str(row.get("budget_given", row["budget"])) == given


def _short(count: int) -> str:
    return f"{count:,}" if count < 10_000 else f"{count / 1000:,.0f}k"


def _recall_table(given: str, rows: Sequence[Row], beside: Sequence[Row]) -> list[RenderableType]:
    bins = next(row["recall"] for row in [*rows, *beside] if row["recall"])
    asked = f"{bins[0]['n']}" if len({each["n"] for each in bins}) == 1 else "at least 20"
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("memory", overflow="fold")
    for each in bins:
        table.add_column(f"{_short(each['from'])}-{_short(each['to'])}", justify="right", no_wrap=True)
    for row in [*beside, *rows]:
        cells = ["failed" if row.get("error") else "-"] if not row["recall"] else []
        cells += [f"{each['recall']:.2f}" for each in row["recall"]]
        table.add_row(Text(row["memory"], style="dim" if row in beside else ""), *cells)
    return [Text(f"recall by distance in tokens, budget {given}, {asked} questions each", style="bold"), table]


def _cost_table(given: str, rows: Sequence[Row]) -> list[RenderableType]:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading in ("memory", "loss", "device", "RAM", "disk", "p50 ms", "p99", "slope/M", "tokens/s", "answer ms"):
        left = heading == "memory"
        table.add_column(heading, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in rows:
        if row.get("error"):
            table.add_row(Text(row["memory"]), "failed")
            continue
        step = row["step_ms"]
        table.add_row(
            Text(row["memory"]), number(row["nll_mean"], 3),
            *(_tier(row["bytes"][tier]) for tier in ("device", "ram", "disk")),
            number(step["p50"], 1), number(step["p99"], 1), number(step["slope_per_million"], 1),
            number(row["ingest_tokens_per_second"], 0), number(row["first_token_ms"], 1),
        )  # fmt: skip
    return [Text(f"loss, peak bytes, latency, budget {given}", style="bold"), table]


def _tier(count: int | None) -> str:
    return size(count) if count else "-"
