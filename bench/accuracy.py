"""How exact is the fast path? The largest difference of logits to the cache-rank reference, over a long stream.

    python -m bench.accuracy --tokens 20000 --ways native,native-ingest

Ways to read the same random tokens with the same random weights (float32), compared with `bench.reference` at every
token: `decode` and `ingest` (ours, token by token and in chunks of 256, compiled), the same as `decode-eager`, and as
`native` and `native-ingest`; `concat` (our re-implementation of the reference code's scheme, which has its angles in
float64 too, for scale). The reference itself is first compared with a plain transformers forward, inside the budget.
Last line: one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.peers.concat_worker import Concat
from bench.peers.llama_torch import build_model
from bench.peers.ours_worker import Ours
from bench.peers.protocol import Setup, Skip
from bench.peers.weights import token_stream
from bench.reference import CacheRankReference
from bench.shapes import CHUNK, SHAPES, SINKS, WINDOW

Reader = Callable[[list[int]], Tensor]  # a block of tokens to its logits, [T, vocabulary]
SELF_CHECK = 64  # tokens inside the budget


def reader(way: str, setup: Setup) -> Reader:
    """Something that reads blocks of tokens in one way.

    Raises:
        Skip: this way does not exist here.
    """
    if way == "concat":
        concat = Concat()
        concat.setup(setup)
        return lambda block: torch.cat([concat.forward(torch.tensor([[token]]))[0] for token in block])
    ours = Ours()
    path = "eager" if way == "decode-eager" else "native" if way.startswith("native") else "compiled"
    ours.setup(Setup(setup.shape, setup.dtype, setup.threads, setup.scratch, {"path": path}))
    return ours.read_block if way.endswith("ingest") else ours.read_singly


def check_reference(setup: Setup, ids: list[int]) -> float:
    """The largest difference between the reference and a transformers forward over the first tokens."""
    model = build_model(setup, attention="eager")
    reference = CacheRankReference(model, SINKS, WINDOW)
    ours = torch.stack([reference.step(token) for token in ids])
    return float((model(torch.tensor([ids])).logits[0] - ours).abs().max())


def compare(setup: Setup, ways: list[str], tokens: int) -> dict[str, Any]:
    """Read the same stream in all ways and note the largest difference of each, and where it was."""
    ids = token_stream(setup.shape, tokens, seed=11)
    found: dict[str, Any] = {"tokens": tokens, "reference_to_transformers": check_reference(setup, ids[:SELF_CHECK])}
    readers, skipped = {}, {}
    for way in ways:
        try:
            readers[way] = reader(way, setup)
        except Skip as reason:
            skipped[way] = str(reason)
            print(f"skipped {way}: {reason}", file=sys.stderr)
    worst = dict.fromkeys(readers, (0.0, 0))
    largest, start = 0.0, time.monotonic()
    reference = CacheRankReference(build_model(setup), SINKS, WINDOW)
    for begin in range(0, tokens if readers else 0, CHUNK):
        block = ids[begin : begin + CHUNK]
        expected = torch.stack([reference.step(token) for token in block])
        largest = max(largest, float(expected.abs().max()))
        for way, read in readers.items():
            differences = (read(block).float() - expected).abs().amax(dim=1)
            value, index = differences.max(dim=0)
            if float(value) > worst[way][0]:
                worst[way] = (float(value), begin + int(index))
        done = begin + len(block)
        print(f"\r  {done}/{tokens} tokens, {time.monotonic() - start:.0f} s", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    found_ways = {way: {"largest_difference": value, "at": at} for way, (value, at) in worst.items()}
    return found | {"largest_logit": largest, "ways": found_ways, "skipped": skipped}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="T")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--ways", default="decode,ingest,native,native-ingest")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    setup = Setup(SHAPES[arguments.shape], "float32", arguments.threads, Path("."), {"attention": "eager"})
    with torch.inference_mode():
        document = compare(setup, arguments.ways.split(","), arguments.tokens)
    print(json.dumps({"benchmark": "accuracy", "shape": arguments.shape, "dtype": "float32"} | document))


if __name__ == "__main__":
    main()
