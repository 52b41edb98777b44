"""What do rows save that step together? One step of N rows against N steps of one row, and what the bytes allow.

    python -m bench.rows --rows 4,16,64 --threads 2

Shape M in bfloat16 on the native step, every row with a full memory of 1,024 entries. Together a step reads the weights
once and each row's keys and values, apart each step reads the weights too, so bytes allow

    N * (weights + entries) / (weights + N * entries)

Both take turns, round after round; medians. Last line: one JSON document.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from bench import machine
from bench.bandwidth import measure_bandwidth
from bench.models import attached
from bench.report import finish, say, table
from bench.shapes import BUDGET, ITEMSIZE, SHAPES
from penstock.core import Phase, Span
from penstock.memory import Memory
from penstock.methods import parse
from penstock.models.attach import Attached
from penstock.models.paths import Runner

GOAL = 0.8  # of what bytes allow


def runner(model: Attached, rows: int) -> Runner:
    """Full memories: one row reads, the others are copies."""
    memory = Memory(model.geometry, parse("streaming-llm").cascades(model.geometry, BUDGET), rows)
    made = Runner(model, memory, "native")
    tokens = torch.randint(0, model.vocabulary, (BUDGET + 64,), generator=torch.Generator().manual_seed(1))
    for part in tokens.split(256):
        made.step([Span(0, len(part))], part, "none")
    for row in range(1, rows):
        memory.copy_row(0, memory, row)
    return made


def measure(model: Attached, rows: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step together, and of as many steps apart."""
    made, spans = runner(model, rows), [Span(row, 1) for row in range(rows)]
    together: list[tuple[float, float]] = []
    apart: list[tuple[float, float]] = []
    tokens = torch.randint(0, model.vocabulary, (2, rounds + 1, rows), generator=torch.Generator().manual_seed(2))
    for i in range(rounds + 1):
        began = time.perf_counter(), time.process_time()
        made.step(spans, tokens[0, i], torch.arange(rows), Phase.ANSWER)
        between = time.perf_counter(), time.process_time()
        for row in range(rows):
            made.step([spans[row]], tokens[1, i, row : row + 1], "last", Phase.ANSWER)
        ended = time.perf_counter(), time.process_time()
        if i:
            together.append((between[0] - began[0], between[1] - began[1]))
            apart.append((ended[0] - between[0], ended[1] - between[1]))
    size = SHAPES["M"].parameters_read * ITEMSIZE["bfloat16"]
    entries = SHAPES["M"].kv_bytes(BUDGET, ITEMSIZE["bfloat16"])
    allowed = rows * (size + entries) / (size + rows * entries)
    found: dict[str, Any] = {"rows": rows, "bytes": size + rows * entries, "allowed": allowed}
    for i, kind in enumerate(("wall", "processor")):
        ours, theirs = (statistics.median(value[i] for value in values) for values in (together, apart))
        found |= {f"{kind}_together_ms": 1e3 * ours, f"{kind}_apart_ms": 1e3 * theirs, f"{kind}_ratio": theirs / ours}
    found["fraction"] = found["wall_ratio"] / allowed
    return found


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="4,16,64")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    model, found = attached("M", "bfloat16", options.threads), []
    with machine.quiet():
        busy = machine.busy_percent()
        bandwidth = measure_bandwidth(options.threads)["bytes_per_second"]
        for rows in map(int, options.rows.split(",")):
            found.append(measure(model, rows, options.rounds))
            found[-1]["fraction_of_limit"] = found[-1]["bytes"] / bandwidth / (found[-1]["wall_together_ms"] / 1e3)
    heads = ("rows", "together", "apart", "ratio", "bytes allow", "of that", "of the limit", "processor ratio")
    lines = [
        [
            str(own["rows"]), f"{own['wall_together_ms']:.1f} ms", f"{own['wall_apart_ms']:.1f} ms",
            f"{own['wall_ratio']:.2f}x", f"{own['allowed']:.2f}x", f"{own['fraction']:.0%}",
            f"{own['fraction_of_limit']:.0%}", f"{own['processor_ratio']:.2f}x",
        ]
        for own in found
    ]  # fmt: skip
    say(table(heads, lines))
    for own in found:
        if own["rows"] == 16:
            say(f"16 rows: {own['fraction']:.0%} of what bytes allow (goal {GOAL:.0%}: {_met(own['fraction'])})")
    document = {"benchmark": "rows", "settings": vars(options), "rows": found, "bandwidth": bandwidth}
    finish(document | {"machine": machine.record() | {"busy_percent_before": busy}}, None)


def _met(fraction: float) -> str:
    return "met" if fraction >= GOAL else "NOT met"


if __name__ == "__main__":
    main()
