"""What do coded keys and values cost? Loss on held-out text and bytes, against the same window without codes.

    python -m bench.codes --tokens 16384 --budget 1024
    python -m bench.codes --tokens 4096 --budget 512 --path native --chunk 1 --methods "kv4:coded=false;kv8;kv4"

With `--path native --chunk 1` each token reads the codes as they are stored (penstock/kernels/reading.py).
The shipped model in bfloat16 reads Python's library text that it was not trained on, once per memory. `loss` is the
mean over the tokens after the first `--budget`; its increase, with a standard error over tokens, is against the same
window without codes (`coded=false`), not against `streaming-llm`, whose window drops single tokens instead of groups.
Bytes are the memory's own formula, over two bytes per number of keys and values. Last line: one JSON document.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from torch import Tensor

from bench.report import say, table
from penstock.core import Span
from penstock.memory import Memory
from penstock.methods import parse
from penstock.models.load import Model, load
from penstock.models.paths import PATHS, Runner
from penstock.worlds.library import heldout_text

PLAIN = "kv4:coded=false"
METHODS = (PLAIN, "streaming-llm", "kv8", "kv4", "bit-planes", "k-sort", "k-sort:sort=false")


def tokens_of(model: Model, count: int) -> Tensor:
    """Held-out documents, one after the other: [count]."""
    ids: list[int] = []
    for text in heldout_text():
        ids += model.tokenizer(text)["input_ids"]
        if len(ids) >= count:
            return torch.tensor(ids[:count])
    raise SystemExit(f"there are {len(ids)} held-out tokens: give --tokens {len(ids)} or fewer.")


@torch.no_grad()
def losses(
    model: Model, method: str, budget: int, ids: Tensor, path: str = "eager", chunk: int = 64
) -> tuple[Tensor, Memory]:
    """Loss per token [T - 1], and the memory that was left."""
    geometry = model.attached.geometry
    memory = Memory(geometry, parse(method).cascades(geometry, budget))
    runner = Runner(model.attached, memory, path, chunk)
    out = []
    for start in range(0, len(ids) - 1, chunk):
        part = ids[start : min(start + chunk, len(ids) - 1)]
        logits = runner.step([Span(0, len(part))], part, "all")
        assert logits is not None
        following = ids[start + 1 : start + 1 + len(part)]
        out.append(torch.nn.functional.cross_entropy(logits.float(), following, reduction="none"))
    return torch.cat(out), memory


def main() -> None:
    """Read, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by semicolons")
    parser.add_argument("--path", default="eager", choices=PATHS)
    parser.add_argument("--chunk", type=int, default=64, help="tokens per step")
    options = parser.parse_args()
    if options.tokens < 2 * options.budget:
        parser.error(f"the window is full after {options.budget} tokens: give --tokens {2 * options.budget} or more.")
    model = load(None, dtype="bfloat16")
    ids = tokens_of(model, options.tokens)
    layers = model.attached.geometry.layers
    plain_bytes = options.budget * sum(layer.entry_bytes(torch.bfloat16) for layer in layers)
    base, _ = losses(model, PLAIN, options.budget, ids, options.path, options.chunk)
    base = base[options.budget :]
    rows: list[dict[str, Any]] = []
    for method in options.methods.split(";"):
        began = time.perf_counter()
        found, memory = losses(model, method, options.budget, ids, options.path, options.chunk)
        seconds = time.perf_counter() - began
        change = (found[options.budget :] - base) / base.mean()
        rows.append(
            {
                "memory": method,
                "loss": round(float(found[options.budget :].mean()), 4),
                "increase_percent": round(100 * float(change.mean()), 3),
                "standard_error_percent": round(100 * float(change.std()) / len(change) ** 0.5, 3),
                "bytes": memory.budget_bytes,
                "bytes_ratio": round((memory.budget_bytes or 0) / plain_bytes, 4),
                "tokens_per_second": round(len(found) / seconds),
            }
        )
    heads = ("memory", "loss", "increase", "", "bytes / 16-bit", "tokens / s")
    say(
        table(
            heads,
            (
                (
                    row["memory"],
                    f"{row['loss']:.4f}",
                    f"{row['increase_percent']:+.2f}%",
                    f"± {row['standard_error_percent']:.2f}",
                    f"{row['bytes_ratio']:.3f}",
                    str(row["tokens_per_second"]),
                )
                for row in rows
            ),
        )
    )
    say(json.dumps({"tokens": options.tokens, "budget": options.budget, "rows": rows}))


if __name__ == "__main__":
    main()
