"""Is a decode step on a GPU as fast as its memory, and the same at position one million as at four thousand?

Random weights in the shapes of an 8B and a 1B Llama, and the shipped model; batch 1, 4 sinks and a window, 4096
entries. A step ends with the next token on the host, for everybody. Ours runs on the path `gpu`; far positions are
reached by reading a full window and shifting the counter. Beside it, on the same weights, transformers with its own
attention over 64k tokens that it has read: with the cache that grows and with the static one. All take turns, round
after round.

    python -m bench.gpu                              everything, minutes on an idle device
    python -m bench.gpu --shapes 1B --rounds 5       part of it
    TRITON_INTERPRET=1 python -m bench.gpu --smoke   whether this program works, on the CPU; its times mean nothing

Columns: median step in ms, its 10th and 90th percentile over rounds, and the fraction of the physical limit: bytes that
the step must read (weights once, keys and values of what the query sees) over the measured bandwidth, divided by the
measured time. The last line is one JSON document. Without a CUDA device it says so and ends.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import machine
from bench.report import count, figure, finish, save_figure, say, table
from bench.shapes import ROPE_THETA, SINKS, Shape
from penstock.core import Span
from penstock.memory import Memory
from penstock.methods import parse
from penstock.models.gpu import GpuSteps
from penstock.models.load import Model, load
from penstock.models.paths import Runner

SHAPES = {
    "8B": Shape("8B", 4096, 32, 32, 8, 14_336, 128_256, tied=False),
    "1B": Shape("1B", 2048, 16, 32, 8, 8192, 128_256, tied=True),
    "shipped": None,
}
SMOKE = Shape("smoke", 64, 1, 4, 2, 96, 128, tied=False)
BUDGET, DENSE_AT, POSITIONS = 4096, 65_536, (4096, 65_536, 1 << 20)
CHUNK, PREFILL = 256, 2048
GOALS = {"fraction": 0.80, "times": 3.0, "flatness": 0.02}


def random_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> Model:
    """A Llama of this shape, its weights drawn on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, intermediate_size=shape.intermediate, vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied, max_position_embeddings=2 * DENSE_AT,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        hf = LlamaForCausalLM(config).to(dtype).eval()
    return load(hf, tokenizer=load().tokenizer)


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second that the device reads: the better of a sum over float32 and a copy, best of 20."""
    data = torch.ones(size // 4, device=device)
    other = torch.empty_like(data)
    ways: tuple[tuple[int, Callable[[], Any]], ...] = ((size, data.sum), (2 * size, lambda: other.copy_(data)))
    best = 0.0
    for amount, run in ways:
        for _ in range(20):
            best = max(best, amount / seconds(device, run))
    return best


def seconds(device: torch.device, run: Callable[[], Any]) -> float:
    """How long something takes on the device."""
    wait(device)
    began = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - began


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_bytes(model: Model, budget: int) -> int:
    """Weights that a step reads, an untied embedding left out, and keys and values of a full memory."""
    hf, geometry = model.attached.hf, model.attached.geometry
    embedding, head = hf.get_input_embeddings().weight, hf.get_output_embeddings().weight  # type: ignore[operator]
    weights = sum(p.numel() * p.element_size() for p in hf.parameters())
    if embedding.data_ptr() != head.data_ptr():
        weights -= embedding.numel() * embedding.element_size()
    return weights + budget * sum(layer.entry_bytes(geometry.dtype) for layer in geometry.layers)


class Ours:
    """A full memory at a position, on the path `auto`."""

    def __init__(self, model: Model, budget: int, position: int, path: str) -> None:
        self.model, self.device = model, model.attached.device
        self.memory = Memory(model.attached.geometry, parse(f"streaming-llm:sinks={SINKS}").cascades(
            model.attached.geometry, budget
        ))  # fmt: skip
        self.runner = Runner(model.attached, self.memory, "eager" if self.device.type == "cpu" else path, CHUNK)
        if self.device.type == "cpu":  # a smoke test: the kernels are interpreted
            self.runner._native = GpuSteps(model.attached, self.memory)
        self.token = 3
        self.times: list[float] = []
        chunk = min(CHUNK, budget)
        self.ingest_seconds = float("inf")  # of the fastest chunk
        tokens = torch.randint(3, model.attached.vocabulary, (budget,), generator=torch.Generator().manual_seed(1))
        for first in range(0, budget, chunk):
            part = tokens[first : first + chunk]
            took = seconds(self.device, lambda part=part: self.runner.step([Span(0, len(part))], part, "none"))
            self.ingest_seconds = min(self.ingest_seconds, took)
        if position > budget:
            self.memory.shift(position - budget)

    def step(self) -> None:
        out = self.runner.step([Span(0, 1)], [self.token])
        assert out is not None
        self.token = int(out[0].argmax())


class Dense:
    """transformers with its own attention and one of its caches, over tokens that it has read."""

    def __init__(self, model: Model, length: int, static: bool, room: int) -> None:
        from transformers import DynamicCache, StaticCache

        self.model, self.device, hf = model, model.attached.device, model.attached.hf
        self.cache: Any = StaticCache(config=hf.config, max_cache_len=length + room) if static else DynamicCache()
        self.token = 3
        self.times: list[float] = []
        tokens = torch.randint(3, model.attached.vocabulary, (1, length), generator=torch.Generator().manual_seed(1))
        with model.attached.native():
            for part in tokens.split(PREFILL, dim=1):
                self._forward(part)

    def _forward(self, tokens: Tensor) -> Tensor:
        hf = self.model.attached.hf
        out = hf(tokens.to(self.device), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = out.logits[0, -1]
        return logits

    def step(self) -> None:
        self.token = int(self._forward(torch.tensor([[self.token]])).argmax())


def measure(contestants: dict[str, Ours | Dense], rounds: int, steps: int) -> None:
    """Everyone in turn, each time another one first; a visit is `steps` steps behind three untimed ones."""
    names = list(contestants)
    for round_ in range(rounds):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            one = contestants[name]
            native = one.model.attached.native() if isinstance(one, Dense) else torch.no_grad()
            with native:
                for _ in range(3):
                    one.step()
                one.times.append(seconds(one.device, lambda one=one: [one.step() for _ in range(steps)]) / steps)


def run_shape(name: str, arguments: argparse.Namespace, rate: float) -> dict[str, Any]:
    """All contestants on one model."""
    device, smoke = arguments.device, arguments.smoke
    dtype = torch.float32 if smoke else torch.bfloat16
    budget, dense_at = (16, 40) if smoke else (BUDGET, DENSE_AT)
    shape = SMOKE if smoke else SHAPES[name]
    model = load(None, dtype=dtype, device=device) if shape is None else random_model(shape, device, dtype)
    steps = 2 if smoke else 20
    room = arguments.rounds * (steps + 3) + 1
    contestants: dict[str, Ours | Dense] = {}
    skipped: dict[str, str] = {}
    for position in (budget, dense_at, 1 << 20) if smoke else POSITIONS:
        contestants[f"ours at {count(position)}"] = Ours(model, budget, position, arguments.path)
    for kind in ("dynamic", "static"):
        try:
            contestants[f"dense {kind} at {count(dense_at)}"] = Dense(model, dense_at, kind == "static", room)
        except torch.cuda.OutOfMemoryError:
            skipped[kind] = "the device's memory is too small"
    first = next(iter(contestants.values()))
    assert isinstance(first, Ours)
    measure(contestants, arguments.rounds, steps)
    needed = step_bytes(model, budget)
    rows = {}
    for label, one in contestants.items():
        median = statistics.median(one.times)
        low, high = min(one.times), max(one.times)
        if len(one.times) > 4:
            cuts = statistics.quantiles(one.times, n=10)
            low, high = cuts[0], cuts[-1]
        rows[label] = {"median_ms": 1e3 * median, "p10_ms": 1e3 * low, "p90_ms": 1e3 * high}
        if isinstance(one, Ours):
            rows[label]["fraction"] = needed / rate / median
    ours = [row["median_ms"] for label, row in rows.items() if label.startswith("ours")]
    dense = [row["median_ms"] for label, row in rows.items() if label.startswith("dense")]
    return {
        "shape": name if shape is None else shape.name, "dtype": str(dtype).removeprefix("torch."), "budget": budget,
        "step_bytes": needed,
        "path": first.runner.status, "rows": rows, "skipped": skipped,
        "ingest_tokens_per_second": min(CHUNK, budget) / first.ingest_seconds,
        "fraction": needed / rate / (1e-3 * ours[-1]), "times": min(dense) / ours[1] if dense else None,
        "flatness": max(ours) / min(ours) - 1,
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """The table of one shape, and the figures to reach beside those reached."""
    say(f"\n{result['shape']} {result['dtype']}, budget {result['budget']}, {result['path']}")
    lines = []
    for label, row in result["rows"].items():
        share = f"{100 * row['fraction']:.0f}%" if "fraction" in row else ""
        lines.append([label, *[f"{row[key]:.3f}" for key in ("median_ms", "p10_ms", "p90_ms")], share])
    say(table(("contestant", "step ms", "p10", "p90", "of the limit"), lines))
    times = "not measured" if result["times"] is None else f"{result['times']:.2f}x (goal: {GOALS['times']:g}x)"
    say(
        f"fraction of the bandwidth at 1M {100 * result['fraction']:.0f}% (goal: {100 * GOALS['fraction']:.0f}%), "
        f"against the faster dense one {times}, flatness {100 * result['flatness']:.1f}% "
        f"(goal: {100 * GOALS['flatness']:.0f}%), reading {result['ingest_tokens_per_second']:.0f} tokens/s"
    )


def draw(results: list[dict[str, Any]], rate: float, path: Path) -> None:
    """Median step by contestant, one panel per shape, with the physical limit."""
    drawing, axes = figure(len(results))
    for axis, result in zip(axes, results):
        labels = list(result["rows"])
        axis.bar(range(len(labels)), [row["median_ms"] for row in result["rows"].values()])
        axis.axhline(1e3 * result["step_bytes"] / rate, linestyle="--", color="black", label="bytes / bandwidth")
        axis.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
        axis.set_ylabel("step, ms")
        axis.set_title(f"{result['shape']} {result['dtype']}, {result['budget']} entries")
        axis.legend()
    save_figure(drawing, path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=",".join(SHAPES), help="of " + ", ".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--path", default="gpu")
    parser.add_argument("--plot", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU: does this program work?")
    arguments = parser.parse_args()
    names = arguments.shapes.split(",")
    if unknown := [name for name in names if name not in SHAPES]:
        parser.error(f"no such shape: {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    if not arguments.smoke and not torch.cuda.is_available():
        print("There is no CUDA device here, so nothing was measured.")
        return
    arguments.device = torch.device("cpu" if arguments.smoke else "cuda")
    torch.set_grad_enabled(False)
    rate = bandwidth(arguments.device, 1 << (24 if arguments.smoke else 32))
    about = "no device: a smoke test" if arguments.smoke else torch.cuda.get_device_name()
    say(f"{about}, reads {rate / 1e9:.0f} GB/s")
    results = []
    for name in names[:1] if arguments.smoke else names:
        results.append(run_shape(name, arguments, rate))
        show(results[-1])
        if not arguments.smoke:
            torch.cuda.empty_cache()
    if arguments.plot is not None:
        draw(results, rate, arguments.plot)
    document = {"device": about, "smoke": arguments.smoke, "bytes_per_second": rate, "models": results, "goals": GOALS}
    finish({**document, "machine": machine.record()}, arguments.json)


if __name__ == "__main__":
    main()
