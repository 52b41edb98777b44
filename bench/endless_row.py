"""How does one memory read the whole stream? One row of `bench.endless`, in a process of its own.

`dense` is the plain transformers cache; every other name is a memory of penstock. What is recorded lies in arrays that
are filled before the first token, so that the record itself does not grow. Last line: one JSON document.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

from bench.peers.llama_torch import cache_bytes
from bench.peers.protocol import resident_bytes

CHUNK = 64
SINGLES = 16  # single decode steps at each sample
SAMPLE_EVERY = 10_000


class Reader(ABC):
    """Something that reads a stream and says how surprised it was."""

    @abstractmethod
    def read(self, ids: list[int]) -> float:
        """Read a chunk; the mean loss of its tokens (the very first token of the stream has none)."""

    @abstractmethod
    def step(self, token: int) -> float:
        """Read one token as a decode step; its loss."""

    @abstractmethod
    def memory_bytes(self) -> int: ...


class Dense(Reader):
    """transformers with its DynamicCache, which keeps everything."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.cache = DynamicCache(config=self.model.config)
        self.logits: torch.Tensor | None = None

    def read(self, ids: list[int]) -> float:
        logits = self.model(torch.tensor([ids]), past_key_values=self.cache).logits[0]
        known = logits[:-1] if self.logits is None else torch.cat((self.logits, logits[:-1]))
        self.logits = logits[-1:].clone()
        target = torch.tensor(ids[len(ids) - len(known) :])
        return float(torch.nn.functional.cross_entropy(known, target)) if len(known) else float("nan")

    def step(self, token: int) -> float:
        return self.read([token])

    def memory_bytes(self) -> int:
        return cache_bytes(self.cache)


class Bounded(Reader):
    """A session of penstock that measures its losses."""

    def __init__(self, folder: Path, memory: str, budget: int, path: str) -> None:
        import penstock

        model = penstock.load(folder, dtype=torch.float32)
        self.session = penstock.open(model, memory, budget, chunk=CHUNK, path=path, measure=True)

    def _loss(self) -> float:
        loss = self.session.meter.recent_nll
        return float("nan") if loss is None else loss

    def read(self, ids: list[int]) -> float:
        self.session.ingest(ids)
        return self._loss()

    def step(self, token: int) -> float:
        self.session.decode(token)
        return self._loss()

    def memory_bytes(self) -> int:
        return int(self.session.memory.nbytes)


def sample_points(tokens: int) -> list[int]:
    """Where latency and memory are looked at: powers of two at first, then every SAMPLE_EVERY tokens, and the end."""
    early = [CHUNK << power for power in range(12) if CHUNK << power < SAMPLE_EVERY]
    return [*early, *range(SAMPLE_EVERY, tokens, SAMPLE_EVERY), tokens]


class Record:
    """Losses by chunk and samples by position, in arrays of fixed size."""

    COLUMNS = ("position", "step_ms", "chunk_ms", "memory_bytes", "rss_bytes")

    def __init__(self, tokens: int) -> None:
        self.losses = np.full((tokens // 2, 3), -1.0)  # from, to, mean
        self.samples = np.full((len(sample_points(tokens)), len(self.COLUMNS)), -1.0)
        self.pieces = self.sampled = 0

    def loss(self, start: int, end: int, mean: float) -> None:
        if mean == mean and self.pieces < len(self.losses):
            self.losses[self.pieces] = start, end, mean
            self.pieces += 1

    def sample(self, *values: float) -> None:
        self.samples[self.sampled] = values
        self.sampled += 1

    def by_position(self) -> list[list[float]]:
        """[from, to, mean loss] in bins that double, and the mean over each."""
        pieces = self.losses[: self.pieces]
        end = int(pieces[-1, 1]) if len(pieces) else 0
        edges = [0, *[256 << power for power in range(40) if 256 << power < end], end]
        return [[*edge, mean] for edge in itertools.pairwise(edges) if (mean := self.mean(*edge)) is not None]

    def mean(self, start: int, end: int) -> float | None:
        """The mean loss of the tokens in [start, end)."""
        pieces = self.losses[: self.pieces]
        inside = pieces[(pieces[:, 0] >= start) & (pieces[:, 0] < end)]
        if not len(inside):
            return None
        return float(np.average(inside[:, 2], weights=inside[:, 1] - inside[:, 0]))

    def rows(self) -> list[dict[str, float]]:
        return [dict(zip(self.COLUMNS, map(float, row))) for row in self.samples[: self.sampled]]


def run(reader: Reader, ids: np.ndarray[Any, Any], name: str) -> Record:
    """Read everything: chunks, and at each sample point a few single steps, all part of the same stream."""
    record, tokens, at = Record(len(ids)), len(ids), 0
    points = iter(sample_points(tokens))
    point, began = next(points), time.monotonic()
    while at < tokens:
        sampling = at + CHUNK + SINGLES >= point
        end = min(at + CHUNK, tokens - SINGLES)
        start = time.perf_counter()
        record.loss(at, end, reader.read(ids[at:end].tolist()))
        chunk_ms, at = 1e3 * (time.perf_counter() - start), end
        if not sampling:
            continue
        seconds = []
        for token in ids[at : at + SINGLES].tolist():
            start = time.perf_counter()
            loss = reader.step(token)
            seconds.append(time.perf_counter() - start)
            record.loss(at, at + 1, loss)
            at += 1
        record.sample(at, 1e3 * statistics.median(seconds), chunk_ms, reader.memory_bytes(), resident_bytes())
        point = next(points, tokens)
        rate = at / (time.monotonic() - began)
        print(f"\r  {name}: {at}/{tokens} tokens, {rate:.0f} tokens/s ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--memory", required=True)
    parser.add_argument("--budget", type=int, required=True)
    parser.add_argument("--ids", type=Path, required=True, help="a .npy file of token identifiers")
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--path", default="compiled")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable_progress_bar()
    ids = np.load(arguments.ids)[: arguments.tokens]
    began = time.monotonic()
    with torch.inference_mode():
        if arguments.memory == "dense":
            reader: Reader = Dense(arguments.model)
        else:
            reader = Bounded(arguments.model, arguments.memory, arguments.budget, arguments.path)
        record = run(reader, ids, arguments.memory)
    document = {
        "memory": arguments.memory,
        "tokens": len(ids),
        "seconds": time.monotonic() - began,
        "nll_mean": record.mean(0, len(ids)),
        "nll_by_position": record.by_position(),
        "nll_curve": [[start, record.mean(start, start + SAMPLE_EVERY)] for start in range(0, len(ids), SAMPLE_EVERY)],
        "samples": record.rows(),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
