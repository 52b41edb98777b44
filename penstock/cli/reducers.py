"""penstock reducers: what leaves out frames and tokens, and what decides when to speak and to stop, with sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from penstock.cli.derive import Common
from penstock.cli.output import Output
from penstock.reducers import Reducer
from penstock.reducers import registry as reducer_registry
from penstock.registry import Named
from penstock.triggers import registry as trigger_registry
from penstock.triggers.monitor import monitors


@dataclass(frozen=True)
class ReducersOptions(Common):
    """Nothing of its own."""


def describe(part: type[Named]) -> dict[str, Any]:
    """A reducer, trigger or monitor as a document."""
    facts = {"name": part.name, "title": part.title, "source": part.source, "options": part().options()}
    if issubclass(part, Reducer):
        facts |= {"stage": part.stage, "noop": str(part.noop())}
    return {**facts, "differs": part.differs}


def reducers(options: ReducersOptions) -> None:
    """List the reducers, triggers and monitors of penstock watch, and their sources."""
    out = Output(options.json)
    found = {
        "reducers": [describe(part) for part in reducer_registry().values()],
        "triggers": [describe(part) for part in trigger_registry().values()],
        "monitors": [describe(part) for part in monitors().values()],
    }
    if out.as_json:
        out.document(found)
        return
    for heading, parts in found.items():
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column()
        for part in parts:
            table.add_row(Text(part["name"]), "", Text(f"{part['title']}  ({part['source']})", style="bold"))
            rows = {
                "options": ", ".join(f"{key}={value}" for key, value in part["options"].items()),
                "acts on": part.get("stage", ""),
                "does nothing as": part.get("noop", ""),
                "differs": part["differs"],
            }
            for name, text in rows.items():
                if text:
                    table.add_row("", name, Text(text))
        out.show(Text(heading), table)
