"""What does the native step gain for memories that attend by themselves? Native and on PyTorch, interleaved.

    python -m bench.cascades --model M --threads 2
    python -m bench.cascades --model shipped --methods infllm,kv4 --threads 1
    python -m bench.cascades --model shipped --methods infllm,kv4 --threads 1 --chunk 64

Every memory reads `--tokens` tokens, then the two paths take turns step by step, after the same stream: single tokens
in the phase of an answer, or with `--chunk` so many tokens of the stream at a time. Processor time counts all threads
and is steady on a busy machine; wall time needs an idle one. `difference` is of the last logits, relative (root of the
mean square); a codec or an archive may choose another way by the last bit of a product. Last line: one JSON document.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from bench import machine
from bench.models import NAMES, attached
from bench.report import finish, say, table
from penstock.core import Phase, Span
from penstock.memory import Memory
from penstock.methods import parse
from penstock.models.attach import Attached
from penstock.models.paths import Runner

METHODS = "streaming-llm,kv4:coded=false,kv8,kv4,infllm,rekv,lserve,duo-attention,heavy-hitters"
PATHS = ("eager", "native")
CHUNK = 64


def runners(model: Attached, method: str, budget: int, tokens: int) -> dict[str, Runner]:
    """The same memory after the same tokens, on both paths."""
    cascades = parse(method).cascades(model.geometry, budget)
    made = {path: Runner(model, Memory(model.geometry, cascades), path, CHUNK) for path in PATHS}
    generator = torch.Generator().manual_seed(1)
    for _ in range(0, tokens, CHUNK):
        part = torch.randint(0, model.vocabulary, (CHUNK,), generator=generator)
        made["native"].step([Span(0, CHUNK)], part, "none")
    made["native"].memory.copy_row(0, made["eager"].memory, 0)
    return made


def measure(model: Attached, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of both paths."""
    made = runners(model, method, options.budget, options.tokens)
    spent: dict[str, list[float]] = {path: [] for path in PATHS}
    passed: dict[str, list[float]] = {path: [] for path in PATHS}
    last: dict[str, torch.Tensor] = {}
    shape, phase = (options.rounds + 2, options.chunk), Phase.ANSWER if options.chunk == 1 else Phase.INGEST
    tokens = torch.randint(0, model.vocabulary, shape, generator=torch.Generator().manual_seed(2))
    for i, part in enumerate(tokens):
        for path in PATHS if i % 2 else PATHS[::-1]:
            processor, wall = time.process_time(), time.perf_counter()
            logits = made[path].step([Span(0, options.chunk)], part, "last", phase)
            if i > 1:
                spent[path].append(time.process_time() - processor)
                passed[path].append(time.perf_counter() - wall)
            assert logits is not None
            last[path] = logits.float()
    row: dict[str, Any] = {"memory": method, "bytes": made["native"].memory.budget_bytes}
    for path in PATHS:
        row[f"{path}_processor_ms"] = round(1e3 * statistics.median(spent[path]), 2)
        row[f"{path}_wall_ms"] = round(1e3 * statistics.median(passed[path]), 2)
    row["processor_ratio"] = round(row["eager_processor_ms"] / row["native_processor_ms"], 2)
    row["wall_ratio"] = round(row["eager_wall_ms"] / row["native_wall_ms"], 2)
    row["difference"] = float((last["native"] - last["eager"]).norm() / last["eager"].norm())
    return row


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=NAMES, default="M")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=1536, help="read before the measurement")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=1, help="tokens of a step")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    model, rows = attached(options.model, options.dtype, options.threads), []
    for method in options.methods.split(","):
        rows.append(measure(model, method, options))
        own = rows[-1]
        say(
            f"{method}: PyTorch {own['eager_processor_ms']:.1f} ms of processor time, native "
            f"{own['native_processor_ms']:.1f} ({own['processor_ratio']:.2f}x)"
        )
    heads = ("memory", "PyTorch, processor", "native", "", "PyTorch, wall", "native", "", "difference")
    say()
    say(table(heads, (_shown(row) for row in rows)))
    document = {"benchmark": "cascades", "settings": vars(options), "rows": rows, "machine": machine.record()}
    finish(document, None)


def _shown(row: dict[str, Any]) -> list[str]:
    out = [row["memory"]]
    for kind in ("processor", "wall"):
        out += [
            f"{row[f'eager_{kind}_ms']:.1f} ms",
            f"{row[f'native_{kind}_ms']:.1f} ms",
            f"{row[f'{kind}_ratio']:.2f}x",
        ]
    return [*out, f"{row['difference']:.1e}"]


if __name__ == "__main__":
    main()
