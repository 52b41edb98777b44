"""What a run says of itself: while it reads, and at its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import psutil
import torch
from rich.table import Table
from rich.text import Text

from penstock.cli.lanes import Lane
from penstock.cli.options import RunOptions
from penstock.cli.reading import Reading
from penstock.meter import Bins

_EVERY = 0.25  # seconds between two looks at the resident set


class ResidentSet:
    """The process's resident memory in bytes: at the start of the reading, at its highest, now."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.start = self.peak = self.end = self._process.memory_info().rss
        self._next = 0.0

    def look(self, force: bool = False) -> int:
        """The bytes now, or those of the last look if that was a moment ago."""
        now = time.monotonic()
        if force or now >= self._next:
            self._next = now + _EVERY
            self.end = self._process.memory_info().rss
            self.peak = max(self.peak, self.end)
        return self.end


class Moment(NamedTuple):
    """A run while it reads, for people and for progress documents."""

    tokens: int
    position: int
    seconds: float
    tokens_per_second: float
    nll_now: float | None
    nll_mean: float | None
    step_ms: dict[str, float]
    memory_bytes: int
    budget_bytes: int | None
    rss_bytes: int
    path: str


def moment(reading: Reading, resident: ResidentSet) -> Moment:
    """The run now."""
    lane = reading.main
    stats = lane.session.stats()
    return Moment(
        reading.tokens, stats.tokens, reading.seconds, lane.tokens_per_second_now, lane.nll_now, stats.nll_mean,
        stats.step_ms, stats.memory_bytes, stats.budget_bytes, resident.look(), stats.path,
    )  # fmt: skip


def by_position(bins: Bins, end: int) -> list[list[float]]:
    """[from, to, mean] of every bin; the last one ends with the stream."""
    return [[start, min(stop, end), mean] for start, stop, mean in bins.means()]


def lane_facts(lane: Lane) -> dict[str, Any]:
    """What one memory did."""
    session, meter = lane.session, lane.session.meter
    return {
        "memory": lane.name,
        "budget": session.budget,
        "tokens": meter.tokens,
        "nll_mean": meter.nll_mean,
        "nll_by_position": by_position(meter.nll, session.tokens),
        "step_ms": meter.step_percentiles(),
        "step_ms_by_position": by_position(meter.step_ms, session.tokens),
        "memory_bytes": {"budget": session.memory.budget_bytes, "peak": meter.peak_bytes},
    }


def summary(
    options: RunOptions, reading: Reading | None, lanes: Sequence[Lane], resident: ResidentSet
) -> dict[str, Any]:
    """The last document of `penstock run --json`, as far as the reading goes."""
    session = lanes[0].session
    seconds = reading.seconds if reading else 0.0
    facts = lane_facts(lanes[0])
    tokens = reading.tokens if reading else 0
    resident.look(force=True)
    result = {
        "model": session.model.name,
        **{name: facts.pop(name) for name in ("memory", "budget")},
        "tokens": tokens,
        "position": session.tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        **{name: value for name, value in facts.items() if name != "tokens"},
        "rss_bytes": {"start": resident.start, "peak": resident.peak, "end": resident.end},
        "chunk": session.chunk,
        "device": str(session.model.attached.device),
        "dtype": str(session.model.attached.geometry.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "path": session.runner.status,
        **({"explanation": session.runner.explanation} if options.explain else {}),
        "input": reading.source.name if reading else None,
        "ended": reading.ended if reading else None,
        "waited_seconds": reading.waited if reading else 0.0,
        "digest": session.log.digest,
        "seed": options.seed,
        "notes": reading.source.notes if reading else [],
    }
    if len(lanes) > 1:
        result["compared"] = [{**lane_facts(lane), "stopped": lane.stopped} for lane in lanes[1:]]
    return result


def size(count: float | None) -> str:
    """Bytes for people."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def run_table(facts: dict[str, Any]) -> Table:
    """The end of a run, for people."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    budget = facts["memory_bytes"]["budget"]
    rows = {
        "model": facts["model"],
        "memory": facts["memory"] + (f", {facts['budget']} entries" if facts["budget"] else ""),
        "input": facts["input"],
        "tokens": f"{facts['tokens']:,} in {facts['seconds']:.1f} s, {facts['tokens_per_second']:,.0f} per second",
        "loss": f"{number(facts['nll_mean'], 3)} nats per token",
        "step": f"p50 {facts['step_ms']['p50']:.1f} ms, p99 {facts['step_ms']['p99']:.1f} ms",
        "stored": size(facts["memory_bytes"]["peak"]) + (f" of {size(budget)}" if budget else ", and growing"),
        "resident": f"{size(facts['rss_bytes']['start'])} at the start, {size(facts['rss_bytes']['end'])} at the end",
        "path": facts["path"],
        **({"because": facts["explanation"]} if "explanation" in facts else {}),
    }
    if facts["input"] is None:
        rows = {name: rows[name] for name in ("model", "memory", "stored", "path", "because") if name in rows}
    for name, text in rows.items():
        table.add_row(name, Text(str(text)))
    return table


def lanes_table(lanes: Sequence[Lane]) -> Table:
    """The memories of a comparison, for people."""
    context = lanes[0].session.model.context or 2048
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("memory", "read", f"loss to {context:,}", "loss beyond", "loss now", "step p50", "stored"):
        table.add_column(heading, justify="left" if heading == "memory" else "right", no_wrap=True)
    for lane in lanes:
        meter = lane.session.meter
        table.add_row(
            lane.name + (" (stopped)" if lane.stopped else ""),
            f"{meter.tokens:,}",
            number(lane.nll_between(0, context)),
            number(lane.nll_between(context)),
            number(lane.nll_now),
            f"{meter.step_percentiles()['p50']:.1f} ms",
            size(lane.session.memory.nbytes if lane.stopped is None else meter.peak_bytes),
        )
    return table
