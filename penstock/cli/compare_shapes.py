"""penstock compare --world shapes: memories and reducers on generated videos, asked the same questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from penstock.cli.compare_views import compare_tables, view_for
from penstock.cli.interrupts import Interrupts
from penstock.cli.output import ClosedOutput, Output, say
from penstock.cli.summary import number
from penstock.compare.plot import draw
from penstock.compare.results import Cache, default_folder
from penstock.compare.watching import KINDS, Watching
from penstock.core import Budget
from penstock.errors import CompositionError, UnsupportedModel
from penstock.models.load import load
from penstock.models.vision.tower import VLM
from penstock.seeing import sees
from penstock.session import default_budget

if TYPE_CHECKING:
    from penstock.cli.compare import CompareOptions


def compare_shapes(options: CompareOptions, out: Output) -> int:
    """The command; returns its exit code."""
    from penstock.cli.compare import INTERRUPTED, that_work

    model = load(options.model or VLM, dtype=options.dtype, device=options.device)
    if not sees(model):
        raise UnsupportedModel(f"{model.name} does not see: leave out the model, or name a video-language model.")
    for chain in options.chains:
        if chain.tower:
            raise CompositionError(f"{chain.tower[0].name} changes the tower itself: compare it with penstock watch.")
    budgets = list(dict.fromkeys(map(Budget.parse, options.budget or []))) or [default_budget(model)]
    methods, notes = options.methods(), list[str]()
    if options.takes_all:
        methods, notes = that_work(model, methods, budgets)
    folder = (options.cache or default_folder()) / "shapes"
    watching = Watching(
        model, methods, options.chains, budgets, options.distance or (), options.streams, options.seed, options.chunk,
        Cache(folder, options.fresh),
    )  # fmt: skip
    closed = False
    with Interrupts() as interrupts:
        try:
            with view_for(out) as view:
                watching.run(view.show, lambda: interrupts.flagged)
        except ClosedOutput:
            closed = True
        interrupts.next_phase()
        if options.plot is not None and watching.rows:
            draw(options.plot, _named(watching.rows), watching.baselines, f"{model.name} watches {watching.stream}")
    if watching.cache.trouble:
        notes.append(watching.cache.trouble)
    if closed:
        raise ClosedOutput
    broken = [row for row in watching.rows if row.get("error")]
    for note in notes:
        say(f"note: {note}")
    for row in broken:
        say(f"penstock: {name_of(row)} with a budget of {row['budget']} failed: {row['error']}")
    if out.as_json:
        out.document(document(options, watching, notes))
    else:
        if watching.ended == "interrupted":
            out.write("interrupted: the same command goes on from here\n")
        out.show(*tables(watching))
        if options.plot is not None and watching.rows:
            out.write(f"plot: {options.plot}\n")
    return 1 if broken else INTERRUPTED if watching.ended == "interrupted" else 0


def document(options: CompareOptions, watching: Watching, notes: list[str]) -> dict[str, Any]:
    """The last document of `penstock compare --world shapes --json`."""
    model = watching.model
    return {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "stream": watching.stream,
        "streams": watching.streams,
        "tokens_per_frame": watching.per_frame,
        "chunk": options.chunk,
        "seed": options.seed,
        "device": str(model.attached.device),
        "dtype": str(model.attached.geometry.dtype).removeprefix("torch."),
        "rows": watching.rows,
        "baselines": watching.baselines,
        "ended": watching.ended,
        "plot": str(options.plot) if options.plot and watching.rows else None,
        "notes": notes,
    }


def name_of(row: dict[str, Any]) -> str:
    """memory + reducers."""
    return str(row["memory"]) + ("" if row["reduce"] == "none" else f" + {row['reduce']}")


def _named(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "memory": name_of(row)} for row in rows]


class _Shown:
    """What the tables of a comparison need."""

    def __init__(self, watching: Watching) -> None:
        self.budgets, self.rows, self.baselines = watching.budgets, _named(watching.rows), watching.baselines


def tables(watching: Watching) -> list[RenderableType]:
    """Accuracy by distance and cost as for text, then by kind of question and what was left out."""
    shown: Any = _Shown(watching)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("memory", "budget", *KINDS, "frames/s", "tokens kept", "left out"):
        table.add_column(name, justify="left" if name == "memory" else "right", overflow="fold")
    for row in [*watching.baselines, *watching.rows]:
        if row.get("error"):
            continue
        kinds = [number(row["kinds"][kind]["recall"], 2) for kind in KINDS]
        seen = row["tokens"] + row["tokens_dropped"]
        left_out = f"{100 * row['tokens_dropped'] / seen:.0f} %" if seen else "-"
        table.add_row(
            Text(name_of(row)), row["budget_given"], *kinds, number(row["frames_per_second"], 0), f"{row['tokens']:,}",
            left_out,
        )  # fmt: skip
    asked = next((row["kinds"][KINDS[0]]["n"] for row in watching.rows if not row.get("error")), 0)
    heading = Text(f"accuracy by kind of question ({asked} about the present), and what was read", style="bold")
    parts: list[RenderableType] = [*compare_tables(shown), "", heading, table]
    return parts
