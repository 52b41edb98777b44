"""penstock methods: what there is, with sources and claims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from penstock.cli.derive import Common
from penstock.cli.output import Output
from penstock.methods import Method, registry
from penstock.methods.base import LAWS


@dataclass(frozen=True)
class MethodsOptions(Common):
    """Nothing of its own."""


def describe(method: type[Method]) -> dict[str, Any]:
    """A method as a document."""
    return {
        "name": method.name,
        "title": method.title,
        "source": method.source,
        "slots": list(method.slots),
        "options": method().options(),
        "claims": [law for law in LAWS if law in method.claims],
        "waived": dict(method.waived),
        "differs": method.differs,
    }


def methods(options: MethodsOptions) -> None:
    """List the memories, their sources and claims."""
    out = Output(options.json)
    found = [describe(method) for method in registry().values()]
    if out.as_json:
        out.document({"methods": found})
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for method in found:
        table.add_row(Text(method["name"]), "", Text(f"{method['title']}  ({method['source']})", style="bold"))
        rows = {
            "options": ", ".join(f"{key}={value}" for key, value in method["options"].items()),
            "slots": ", ".join(method["slots"]),
            "claims": ", ".join(method["claims"]),
            "waived": "; ".join(f"{law}: {reason}" for law, reason in method["waived"].items()),
            "differs": method["differs"],
        }
        for name, text in rows.items():
            if text:
                table.add_row("", name, Text(text))
    out.show(table)
