"""penstock recommend: which memory, from stored comparisons, with the reason."""

# ruff: noqa: RUF009
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from penstock.cli.derive import Common, argument, option
from penstock.cli.output import Output
from penstock.cli.summary import number, size
from penstock.compare.recommend import QUESTIONS, Limits, recall_for
from penstock.compare.recommend import recommend as choose
from penstock.compare.results import stored_rows
from penstock.core import parse_size
from penstock.errors import InputError, UnknownName, UsageError

_RUNNERS_UP = 12  # the comparison that is shipped, and a few of the user's own


@dataclass(frozen=True)
class RecommendOptions(Common):
    """Checked when made; raises UsageError with the fix."""

    model: str | None = argument(
        None, "The model, by the name under which it was compared; without one, the tiny model shipped.", "[MODEL]"
    )
    bytes: str | None = option(None, "Bytes on the device at most (64MiB).", "B")
    ram: str | None = option(None, "Bytes in RAM at most.", "B")
    disk: str | None = option(None, "Bytes on disk at most.", "B")
    question: str = option("far", "What will be asked: near (facts within the budget), far (facts ten budgets back or "
                           "more) or loss (nothing, the text is read).", "near|far|loss")  # fmt: skip
    latency: float | None = option(None, "Milliseconds that 99 of 100 steps may take.", "MS")
    cache: Path | None = option(None, "Where comparisons were kept.  [default: the user's cache folder]", "DIR")

    def __post_init__(self) -> None:
        if self.question not in QUESTIONS:
            raise UnknownName("kind of question", self.question, QUESTIONS)
        if self.latency is not None and not self.latency > 0:
            raise UsageError(f"--latency cannot be {self.latency:g}: give milliseconds above 0.")
        self.limits()

    def limits(self) -> Limits:
        """What the memory may take."""
        device, ram, disk = (None if text is None else parse_size(text) for text in (self.bytes, self.ram, self.disk))
        return Limits(device, ram, disk, self.latency)


def recommend(options: RecommendOptions) -> None:
    """Choose a memory for a number of bytes and a kind of question, from stored comparisons."""
    out = Output(options.json)
    rows = stored_rows(options.cache)
    name = options.model or "tiny"
    known = {str(row["model"]) for row in rows}
    if not known:
        raise InputError("there are no stored comparisons: run penstock compare first.")
    if name not in known:
        raise UnknownName("compared model", name, known)
    mine = [row for row in rows if row["model"] == name]
    choice = choose(mine, options.question, options.limits())
    if out.as_json:
        out.document({
            "model": name, "question": options.question, "memory": choice.row["memory"],
            "budget": choice.row["budget"], "reason": choice.reason, "row": dict(choice.row),
            "runners_up": [dict(row) for row in choice.others[:_RUNNERS_UP]],
        })  # fmt: skip
        return
    row = choice.row
    out.write(f"--memory {row['memory']} --budget {row['budget']}\n{choice.reason}\n")
    out.show("", _table([row, *choice.others[:_RUNNERS_UP]], options.question))


def _table(rows: list[Any], question: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    recall = [] if question == "loss" else [f"recall {question}"]
    headings = ("memory", "budget", *recall, "loss", "device", "RAM", "disk", "p50 ms", "p99", "stream")
    for heading in headings:
        left = heading == "memory"
        table.add_column(heading, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in rows:
        table.add_row(
            Text(row["memory"]), str(row["budget"]), *(number(recall_for(row, question)) for _ in recall),
            number(row["nll_mean"], 3), *(size(row["bytes"][t] or None) for t in ("device", "ram", "disk")),
            number(row["step_ms"]["p50"], 1), number(row["step_ms"]["p99"], 1), f"{row['tokens']:,}",
        )  # fmt: skip
    return table
