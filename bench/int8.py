"""What do int8 weights cost in loss? The same text through the native step with the model's weights and with int8 ones.

    python -m bench.int8 --model FOLDER --text FILE         (the shipped model and its library without them)

Prints nats per token and the increase in percent.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import penstock
from bench import machine
from penstock.io import open_text

BUDGET = 256


def read(model: str | None, text: Path | None, tokens: int, path: str) -> float:
    """Mean loss of the first `tokens` tokens."""
    session = penstock.open(model, "streaming-llm", BUDGET, path=path, measure=True)
    source = open_text(str(text) if text else "world:library", 0)
    for piece in source.pieces(4096):
        session.feed(piece)
        if session.tokens >= tokens:
            break
    mean = session.stats().nll_mean
    assert mean is not None
    return mean


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.int8", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None)
    parser.add_argument("--text", type=Path, default=None)
    parser.add_argument("--tokens", type=int, default=20_000)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    losses = {p: read(arguments.model, arguments.text, arguments.tokens, p) for p in ("native", "native-int8")}
    increase = 100 * (losses["native-int8"] / losses["native"] - 1)
    name, text = Path(arguments.model or "tiny").name, (arguments.text or Path("world:library")).name
    print(f"{name} on {text}, {arguments.tokens} tokens: " + ", ".join(f"{p} {loss:.4f}" for p, loss in losses.items()))
    print(f"loss increase {increase:+.3f}%  (goal: at most 1%: {'met' if increase <= 1 else 'NOT met'})")
    print(json.dumps({"model": name, "text": text, "losses": losses, "percent": increase, "machine": machine.record()}))


if __name__ == "__main__":
    main()
