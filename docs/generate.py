"""Write the documents that quote the program: docs/papers.md from the registry of methods.

`python -m docs.generate` rewrites them, `--check` fails when one is out of date.
"""

from __future__ import annotations

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


def main() -> int:
    stale = []
    for path, text in {HERE / "papers.md": papers()}.items():
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
