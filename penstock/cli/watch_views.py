"""What a watcher shows: a live picture on a terminal, lines elsewhere, documents with --json."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from penstock.cli.output import Output, closed_or_failed, say
from penstock.cli.summary import ResidentSet, size
from penstock.watch import Event, Watch
from penstock.watch.opening import Sight

if TYPE_CHECKING:
    from penstock.cli.watch import WatchOptions

_SHOWN = 12  # newest sentences on the screen
_KEPT = 1000  # answers in the summary


def stats(watcher: Watch, resident: ResidentSet) -> dict[str, Any]:
    """The numbers of this moment."""
    counts, memory = watcher.counts, watcher.reader.memory
    return {
        "frames": counts.frames,
        "frames_in": watcher.pipeline.frames_in,
        "frames_skipped": watcher.pipeline.frames_skipped,
        "frames_dropped": watcher.pipeline.frames_dropped,
        "fps": round(watcher.fps, 2),
        "tokens_kept": counts.tokens_kept,
        "tokens_dropped": counts.tokens_dropped,
        "lag_ms": round(counts.lag_ms, 1),
        "waiting": watcher.pipeline.lag,
        "memory_bytes": {"budget": memory.budget_bytes, "now": memory.nbytes, "peak": counts.peak_bytes},
        "rss_bytes": resident.look(),
    }


def summary(watcher: Watch, sight: Sight, options: WatchOptions, resident: ResidentSet) -> dict[str, Any]:
    """The last document of `penstock watch --json`."""
    resident.look(force=True)
    counts, memory = watcher.counts, watcher.reader.memory
    return {
        "source": watcher.pipeline.source.name,
        "model": sight.name,
        "memory": options.memory,
        "budget": sight.budget,
        "reduce": str(watcher.pipeline.chain),
        "frames": counts.frames,
        "seconds": round(watcher.t, 3),
        "wall_seconds": round(watcher.wall, 3),
        "fps": round(watcher.fps, 2),
        "frames_in": watcher.pipeline.frames_in,
        "frames_skipped": watcher.pipeline.frames_skipped,
        "frames_dropped": watcher.pipeline.frames_dropped,
        "tokens_kept": counts.tokens_kept,
        "tokens_dropped": counts.tokens_dropped,
        "lag_ms": round(counts.worst_lag_ms, 1),
        "memory_bytes": {"budget": memory.budget_bytes, "peak": counts.peak_bytes},
        "rss_bytes": {"start": resident.start, "peak": resident.peak, "end": resident.end},
        "busy_seconds": {name: round(value, 3) for name, value in watcher.pipeline.busy.items()}
        | {"read": round(counts.busy, 3)},
        "answers": counts.answers,
        "announcements": counts.announcements,
        "errors": counts.errors,
        "ended": watcher.ended,
        "seed": options.seed,
    }


class Reporter(ABC):
    """Told every event and, after every frame, that time has passed."""

    every = 1.0  # seconds between two looks at the numbers

    def __init__(self, out: Output) -> None:
        self.out = out
        self._next = time.monotonic() + self.every

    @abstractmethod
    def event(self, event: Event) -> None:
        """Something happened."""

    @abstractmethod
    def numbers(self, watcher: Watch, resident: ResidentSet) -> None:
        """How things stand."""

    def tick(self, watcher: Watch, resident: ResidentSet) -> None:
        resident.look()
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self.every
            self.numbers(watcher, resident)

    def last(self, watcher: Watch, resident: ResidentSet) -> None:  # noqa: B027  # most have nothing to add
        """After the last frame."""


class JsonReporter(Reporter):
    """One document per event, the numbers once per second and at the end."""

    def event(self, event: Event) -> None:
        self.out.document(event.document())

    def numbers(self, watcher: Watch, resident: ResidentSet) -> None:
        self.out.document(Event(watcher.t, "frame_stats", facts=stats(watcher, resident)).document())

    def last(self, watcher: Watch, resident: ResidentSet) -> None:
        self.numbers(watcher, resident)


class LineReporter(Reporter):
    """What is said on standard output; numbers on standard error every few seconds."""

    every = 5.0

    def event(self, event: Event) -> None:
        if event.kind in ("error", "dropped"):
            say(f"[{clock(event.t)}] {visible(event.text)}")
        elif event.kind != "silence":
            self.out.write(sentence(event) + "\n")

    def numbers(self, watcher: Watch, resident: ResidentSet) -> None:
        now = stats(watcher, resident)
        say(
            f"[{clock(watcher.t)}] {now['frames']:,} frames, {now['fps']:.1f} per second, "
            f"tokens {now['tokens_kept']:,} kept, {now['tokens_dropped']:,} dropped, lag {now['lag_ms']:.0f} ms, "
            f"stored {size(now['memory_bytes']['now'])}, resident {size(now['rss_bytes'])}"
        )


class ScreenReporter(Reporter):
    """Drawn over itself four times per second."""

    every = 0.25

    def __init__(self, out: Output, live: Live) -> None:
        super().__init__(out)
        self._live, self._said = live, deque[Event](maxlen=_SHOWN)
        self.all_said: deque[Event] = deque(maxlen=_KEPT)

    def event(self, event: Event) -> None:
        if event.kind != "silence":
            self._said.append(event)
        if event.kind in ("answer", "announcement"):
            self.all_said.append(event)
        self._next = 0.0

    def numbers(self, watcher: Watch, resident: ResidentSet) -> None:
        try:
            self._live.update(screen(watcher, resident, list(self._said)), refresh=True)
        except OSError as error:
            raise closed_or_failed(error) from None


@contextmanager
def reporter_for(out: Output) -> Iterator[Reporter]:
    """The reporter that suits where standard output goes."""
    if out.as_json:
        yield JsonReporter(out)
    elif not out.is_terminal:
        yield LineReporter(out)
    else:
        with Live(Text("opening ..."), console=Console(highlight=False), auto_refresh=False, transient=True) as live:
            reporter = ScreenReporter(out, live)
            yield reporter
        for event in reporter.all_said:  # what was said outlives the picture
            out.write(sentence(event) + "\n")


def screen(watcher: Watch, resident: ResidentSet, said: list[Event]) -> RenderableType:
    """One picture of a watcher."""
    now = stats(watcher, resident)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    waits = "   waiting for frames" if watcher.waits else ""
    table.add_row("watches", Text(watcher.pipeline.source.name))
    table.add_row("time", f"{clock(watcher.t)}{waits}")
    table.add_row("frames", f"{now['frames']:,} read, {now['fps']:.1f} per second; {_lost(now)}")
    kept, dropped = now["tokens_kept"], now["tokens_dropped"]
    share = f" ({100 * dropped / (kept + dropped):.0f} %)" if dropped else ""
    table.add_row("tokens", f"{kept:,} kept, {dropped:,} dropped{share}")
    table.add_row("lag", f"{now['lag_ms']:.0f} ms, {now['waiting']} frames waiting")
    table.add_row("memory", _memory(now["memory_bytes"]))
    table.add_row("resident", size(now["rss_bytes"]))
    lines: list[RenderableType] = [Text(sentence(event), style=_STYLES.get(event.kind, "")) for event in said]
    parts: list[RenderableType] = [table, Text(), *lines] if lines else [table]
    return Panel(Group(*parts), title=Text("penstock watch"), subtitle="Ctrl-C ends with a summary", expand=False)


_STYLES = {"announcement": "bold green", "answer": "cyan", "error": "red", "dropped": "yellow"}


def _lost(now: dict[str, Any]) -> str:
    return f"{now['frames_skipped']:,} left out, {now['frames_dropped']:,} dropped"


def _memory(facts: dict[str, Any]) -> RenderableType:
    if facts["budget"] is None:
        return Text(f"{size(facts['now'])}, growing")
    row = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=facts["budget"], completed=facts["now"], width=30)
    row.add_row(bar, f"{size(facts['now'])} of {size(facts['budget'])}")
    return row


def summary_table(facts: dict[str, Any]) -> Table:
    """The end of a watch, for people."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    memory, rss = facts["memory_bytes"], facts["rss_bytes"]
    seen = facts["tokens_kept"] + facts["tokens_dropped"]
    share = f", {100 * facts['tokens_dropped'] / seen:.0f} % dropped" if facts["tokens_dropped"] else ""
    rows = {
        "watched": facts["source"] + (" (interrupted)" if facts["ended"] == "interrupted" else ""),
        "model": facts["model"],
        "memory": facts["memory"] + (f", {facts['budget']} entries" if facts["budget"] else ""),
        "frames": f"{facts['frames']:,} of {facts['seconds']:.1f} s in {facts['wall_seconds']:.1f} s, "
        f"{facts['fps']:.1f} per second; {_lost(facts)}",
        "tokens": f"{facts['tokens_kept']:,} kept{share}"
        + (f" ({facts['reduce']})" if facts["reduce"] != "none" else ""),
        "lag": f"{facts['lag_ms']:.0f} ms at most",
        "stored": size(memory["peak"]) + (f" of {size(memory['budget'])}" if memory["budget"] else ", and growing"),
        "resident": f"{size(rss['start'])} at the start, {size(rss['end'])} at the end",
        "said": f"{facts['answers']} answers, {facts['announcements']} announcements",
    }
    for name, text in rows.items():
        table.add_row(name, Text(str(text)))
    return table


def sentence(event: Event) -> str:
    """An event for people."""
    asked = f"{visible(event.question)} " if event.question is not None else ""
    mark = {"answer": "> ", "announcement": "! "}.get(event.kind, "")
    said = visible(event.text) or "(nothing)"
    if event.facts.get("cut") == "monitor":
        said += " (cut by the monitor)"
    return f"[{clock(event.t)}] {mark}{asked}{'-> ' if asked else ''}{said}"


def clock(t: float) -> str:
    """Stream time for people."""
    minutes, seconds = divmod(t, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{seconds:04.1f}" if hours else f"{minutes:02d}:{seconds:04.1f}"


def visible(text: str) -> str:
    """Text on one line that cannot steer a terminal."""
    return "".join(" " if char in "\n\t" else char if char >= " " and char != "\x7f" else "\ufffd" for char in text)
