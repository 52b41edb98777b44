"""Write the documents that quote the program: docs/papers.md and docs/methods.md from the registry of methods.

`python -m docs.generate` rewrites them, `--check` fails when one is out of date.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path

from penstock.methods import registry

HERE = Path(__file__).parent


def papers() -> str:
    """The table of methods: what we have of each published idea."""
    lines = [
        "# Published methods in penstock",
        "",
        "Generated from the registry by `make docs`; `penstock methods` prints the same.",
        "",
        "| name | what it is | source | differs from the paper | does not claim |",
        "|---|---|---|---|---|",
    ]
    for name, method in registry().items():
        waived = "; ".join(f"{law}: {why}" for law, why in sorted(method.waived.items())) or "-"
        lines.append(f"| `{name}` | {method.title} | {method.source} | {method.differs} | {waived} |")
    return "\n".join(lines) + "\n"


def methods() -> str:
    """Every method: what it keeps, its options, what it claims."""
    lines = [
        "# Methods",
        "",
        "Generated from the registry by `make docs`. Use one as `--memory NAME` or `--memory NAME:option=value,...`,",
        'or as `penstock.open(model, memory="NAME:option=value", budget=4096)`. What each is good for on one stream:',
        "[benchmarks/memories.md](benchmarks/memories.md).",
        "",
    ]
    for name, method in registry().items():
        doc = inspect.cleandoc(method.__doc__ or "")
        options = ", ".join(
            f"`{f.name}={f.default}`"
            for f in dataclasses.fields(method)
            if not f.name.startswith("_")  # type: ignore[arg-type]
        )
        claims = ", ".join(sorted(method.claims))
        lines += [f"## {name}", "", f"**{method.title}** ({method.source}). Differs: {method.differs}.", "", doc, ""]
        lines += [f"- Options: {options or 'none'}", f"- Claims: {claims}"]
        lines += [f"- Does not claim {law}: {why}" for law, why in sorted(method.waived.items())]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    stale = []
    for path, text in {HERE / "papers.md": papers(), HERE / "methods.md": methods()}.items():
        if "--check" in sys.argv[1:]:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(path.name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"out of date: {', '.join(stale)}; run make docs")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
