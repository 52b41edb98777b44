"""Which fraction of the rate of matrix products does reading a chunk reach? Shape M in bfloat16, chunks of 256.

    python -m bench.ingest --threads 2

A chunk over a full memory of 1,024 entries, in the form that does not depend on how the stream was cut, logits of the
last token only. Beside it the same products alone, by PyTorch, at the same shapes and with a weight of its own for each
layer, in float32 and in bfloat16, whichever is faster: four projections per layer, and scores and sums of the
attention, of which every query sees 1,024 entries. Both take turns; medians. Last line: one JSON document.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from bench import machine
from bench.models import attached
from bench.report import finish, say, table
from bench.rows import runner
from bench.shapes import BUDGET, CHUNK, SHAPES, Shape
from penstock.core import Span

GOAL = 0.75


def operations(shape: Shape) -> tuple[int, int]:
    """Of the projections and of the attention of one chunk."""
    kv = shape.kv_heads * shape.head_dim
    layer = 2 * shape.hidden * shape.hidden + 2 * shape.hidden * kv + 3 * shape.hidden * shape.intermediate
    return 2 * CHUNK * shape.layers * layer, 4 * CHUNK * BUDGET * shape.hidden * shape.layers


class Products:
    """The products of one chunk, in one precision."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        kv = shape.kv_heads * shape.head_dim
        sizes = (
            (shape.hidden, shape.hidden + 2 * kv), (shape.hidden, shape.hidden),
            (shape.hidden, 2 * shape.intermediate), (shape.intermediate, shape.hidden),
        )  # fmt: skip
        self.pairs: list[tuple[Tensor, Tensor]] = [
            (torch.randn(CHUNK, k, dtype=dtype), torch.randn(n, k, dtype=dtype)) for k, n in sizes * shape.layers
        ]
        group = shape.heads // shape.kv_heads
        self.query = torch.randn(shape.kv_heads, group * CHUNK, shape.head_dim, dtype=dtype)
        self.entries = torch.randn(shape.layers, shape.kv_heads, BUDGET, shape.head_dim, dtype=dtype)
        self.weights = torch.rand(shape.kv_heads, group * CHUNK, BUDGET, dtype=dtype)

    def projections(self) -> None:
        """Activations times weights, as linear layers do."""
        for x, weight in self.pairs:
            torch.nn.functional.linear(x, weight)

    def attention(self) -> None:
        """Queries times keys, weights times values."""
        for entries in self.entries:
            torch.bmm(self.query, entries.transpose(1, 2))
            torch.bmm(self.weights, entries)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    model, shape = attached("M", "bfloat16", options.threads), SHAPES["M"]
    made = runner(model, 1)
    tokens = torch.randint(0, model.vocabulary, (CHUNK,), generator=torch.Generator().manual_seed(2))
    alone = {str(dtype).removeprefix("torch."): Products(shape, dtype) for dtype in (torch.float32, torch.bfloat16)}
    runs: dict[str, Any] = {"chunk": lambda: made.step([Span(0, CHUNK)], tokens, "last")}
    for name, own in alone.items():
        runs |= {f"projections {name}": own.projections, f"attention {name}": own.attention}
    wall: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    with machine.quiet():
        busy = machine.busy_percent()
        for i in range(options.rounds + 1):
            for name, run in runs.items():
                began = time.perf_counter(), time.process_time()
                run()
                if i:
                    wall[name].append(time.perf_counter() - began[0])
                    processor[name].append(time.process_time() - began[1])
    counts, found = operations(shape), {}
    for kind, times in (("wall", wall), ("processor", processor)):
        ms = {name: 1e3 * statistics.median(values) for name, values in times.items()}
        best = [min(ms[f"{part} {name}"] for name in alone) for part in ("projections", "attention")]
        found[kind] = {"ms": ms, "products_ms": sum(best), "fraction": sum(best) / ms["chunk"]}
        rates = [f"{count / own / 1e6:.0f} GFLOP/s" for count, own in zip(counts, best)]
        lines = [[name, f"{own:.1f} ms"] for name, own in ms.items()]
        say(f"{kind} time; best products: projections {rates[0]}, attention {rates[1]}")
        say(table(("what", "median"), lines))
        fraction = found[kind]["fraction"]
        verdict = "met" if fraction >= GOAL else "NOT met"
        say(f"a chunk at {fraction:.0%} of the rate of its products (goal {GOAL:.0%}: {verdict})\n")
    document = {"benchmark": "ingest", "settings": vars(options), "operations": counts, "found": found}
    finish(document | {"machine": machine.record() | {"busy_percent_before": busy}}, None)


if __name__ == "__main__":
    main()
