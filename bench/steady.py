"""Does a step cost the same at position 64k as at 1k, and how does it compare with what people use today?

Batch 1, random weights in the real shapes T and M (`bench.shapes`), 4 sinks + 1020 window, all contestants in one run:
each is a process of its own with the same number of threads, visited round-robin (`bench.measure`), with the same
weights and tokens. Far positions are reached by filling caches directly with random keys and values (torch peers), by
reading a full window (llama.cpp) or by shifting the counter of a full window (ours): the cost of a step depends on how
many entries are held, never on what they contain.

    python -m bench.steady                                        everything, long
    python -m bench.steady --quick --shapes T --dtypes float32    a smoke test
    python -m bench.steady --shapes M --dtypes bfloat16 --peers ours,concat,llama-cpp-one

Columns: median step in ms, its 10th and 90th percentile over rounds, how many times slower than ours (or than the
first contestant that runs), bytes of keys and values, resident set, and which fraction of the physical limit is
reached: bytes that the step must read (weights once, keys and values of what the query sees) over the measured
bandwidth, divided by the measured time. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import machine, report, steady_report
from bench.bandwidth import measure_bandwidth
from bench.measure import Plan, Series, interleave, ratio
from bench.peers.client import Contestant, Failed
from bench.peers.protocol import Skip
from bench.peers.registry import ENTRANTS
from bench.peers.weights import token_stream
from bench.shapes import BUDGET, CHUNK, ITEMSIZE, SHAPES, SINKS, WINDOW, Shape

INGEST_POSITIONS = (4096, 65536)
AGREEMENT_TOKENS = {"T": 1200, "M": 48}  # T crosses the budget, so that the eviction is compared too


def visit_decode(contestant: Contestant, steps: int, phase: float) -> dict[str, Any]:
    return contestant.call("decode", steps=steps, phase=phase)


def visit_ingest(contestant: Contestant, steps: int, phase: float) -> dict[str, Any]:
    return contestant.call("ingest", chunk=CHUNK, count=steps)


class Cell:
    """One shape in one precision: its contestants, what they answered, what went wrong."""

    def __init__(self, shape: Shape, dtype: str, arguments: argparse.Namespace, plan: Plan) -> None:
        self.shape, self.dtype, self.arguments, self.plan = shape, dtype, arguments, plan
        self.skipped: dict[str, str] = {}
        self.contestants: list[Contestant] = []

    def problem(self, name: str, message: str) -> None:
        self.skipped.setdefault(name, message)
        print(f"skipped {name}: {message}", file=sys.stderr)

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start and set up every contestant that can run."""
        for name in self.arguments.peers:
            begin = time.monotonic()
            try:
                contestant = stack.enter_context(Contestant(ENTRANTS[name], self.arguments.threads))
                contestant.setup(self.shape.name, self.dtype)
            except (Skip, Failed) as reason:
                self.problem(name, str(reason))
                continue
            self.contestants.append(contestant)
            print(f"  {name} is ready after {time.monotonic() - begin:.0f} s", file=sys.stderr)

    def agreement(self) -> dict[str, Any]:
        """Largest difference of the last logits to the concatenating scheme, after the same tokens one by one."""
        tokens = token_stream(self.shape, 12 if self.arguments.quick else AGREEMENT_TOKENS[self.shape.name], seed=1)
        logits: dict[str, list[float]] = {}
        for contestant in self.contestants:
            try:
                logits[contestant.name] = contestant.call("check", tokens=tokens)["logits"]
            except (Skip, Failed) as reason:
                self.problem(contestant.name, f"check: {reason}")
        base = "concat" if "concat" in logits else next(iter(logits), "")
        differences = {
            name: max(abs(a - b) for a, b in zip(found, logits[base])) for name, found in logits.items() if name != base
        }
        return {"tokens": len(tokens), "compared_with": base, "largest_difference": differences}

    def seek(self, position: int, names: set[str] | None = None) -> list[Contestant]:
        """Bring contestants to a position; those that cannot get there are left out."""
        there = []
        for contestant in self.contestants:
            if names is not None and contestant.name not in names:
                continue
            try:
                contestant.call("seek", position=position)
                there.append(contestant)
            except (Skip, Failed) as reason:
                self.problem(contestant.name, f"at position {position}: {reason}")
        return there

    def decode_at(self, position: int) -> dict[str, Any]:
        """Decode latency and memory of everybody at one position."""
        there = self.seek(position)
        series = interleave(there, visit_decode, self.plan, self.problem)
        rows = {name: own.record() for name, own in series.items()}
        for contestant in there:
            if contestant.name in rows:
                visible = contestant.entrant.visible or position
                size, weight = ITEMSIZE[self.dtype], contestant.entrant.weight_bytes
                must_read = self.shape.step_bytes(size, visible) - self.shape.parameters_read * (
                    size - (weight or size)
                )
                rows[contestant.name] |= contestant.call("memory") | {"step_bytes": must_read}
        return {"contestants": rows, "ratios": self.ratios(series)}

    def ingest_at(self, position: int) -> dict[str, Any]:
        """Throughput in chunks at one position."""
        series = interleave(self.seek(position), visit_ingest, self.plan, self.problem)
        rows = {name: own.record() | {"tokens_per_second": CHUNK / own.median} for name, own in series.items()}
        return {"contestants": rows, "ratios": self.ratios(series)}

    def ratios(self, series: dict[str, Series]) -> dict[str, Any]:
        """Every contestant against ours; without ours, against the first one."""
        base = "ours" if "ours" in series else next(iter(series), "")
        found = {name: ratio(own, series[base]) for name, own in series.items() if name != base}
        return {"against": base, "slower_by": found}

    def run(self) -> dict[str, Any]:
        """Measure this shape and precision."""
        print(f"{self.shape.name} {self.dtype}", file=sys.stderr)
        with contextlib.ExitStack() as stack:
            self.start(stack)
            agreement = self.agreement()
            decode = {str(position): self.decode_at(position) for position in self.arguments.positions}
            wanted = [position for position in INGEST_POSITIONS if position in self.arguments.positions]
            ingest = {str(position): self.ingest_at(position) for position in wanted}
        return {
            "shape": self.shape.name,
            "dtype": self.dtype,
            "parameters": self.shape.parameters,
            "step_bytes": self.shape.step_bytes(ITEMSIZE[self.dtype]),
            "contestants": {c.name: {"what": c.entrant.what} | c.description for c in self.contestants},
            "skipped": self.skipped,
            "agreement": agreement,
            "decode": decode,
            "ingest": ingest,
        }


def add_limits(models: list[dict[str, Any]], bytes_per_second: float) -> None:
    """The physical limit of every step for what its contestant's queries see, and the fraction reached."""
    for row in (row for model in models for cell in model["decode"].values() for row in cell["contestants"].values()):
        row["limit_ms"] = 1e3 * row["step_bytes"] / bytes_per_second
        row["fraction_of_limit"] = row["limit_ms"] / row["median_ms"]


def best_bandwidth(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest of several measurements: a disturbed one would flatter everybody."""
    best = max(measured, key=lambda own: own["bytes_per_second"])
    return best | {"measured": [own["bytes_per_second"] for own in measured]}


def accuracy(arguments: argparse.Namespace) -> dict[str, Any]:
    """The largest difference of logits to the float64-angle reference, in a process of its own."""
    tokens = 1_500 if arguments.quick else 20_000
    command = [sys.executable, "-m", "bench.accuracy", "--tokens", str(tokens), "--threads", str(arguments.threads)]
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        return {"skipped": {"accuracy": f"exit status {result.returncode}"}, "ways": {}}
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Lists are separated by commas; unknown names are refused with the list of known ones."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.steady", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default="T,M", help="of " + ",".join(SHAPES))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--positions", default="1024,4096,16384,65536")
    parser.add_argument("--peers", default=",".join(ENTRANTS), help="of " + ",".join(ENTRANTS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="three short rounds: a smoke test, not a measurement, for which no training pauses",
    )
    parser.add_argument("--no-accuracy", action="store_true")
    parser.add_argument("--json", type=Path, default=None, help="also write the document to this file")
    parser.add_argument("--plot", type=Path, default=Path("runs/bench/steady.png"))
    arguments = parser.parse_args(argv)
    for name, known in (("shapes", SHAPES), ("dtypes", ("float32", "bfloat16")), ("peers", ENTRANTS)):
        chosen = [part for part in getattr(arguments, name).split(",") if part]
        for part in chosen:
            if part not in known:
                parser.error(f"unknown name {part!r} in --{name}: choose of {','.join(known)}")
        setattr(arguments, name, chosen)
    arguments.positions = [int(part) for part in arguments.positions.split(",")]
    if min(arguments.positions) < BUDGET:
        parser.error(f"positions start at {BUDGET}, where the window is full")
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    plan = Plan(rounds=3, least=1, visit_seconds=0.1, share_seconds=2.0) if arguments.quick else Plan(arguments.rounds)
    with contextlib.nullcontext() if arguments.quick else machine.quiet():
        busy = machine.busy_percent()
        bandwidths, models = [measure_bandwidth(arguments.threads)], []
        for shape, dtype in itertools.product(arguments.shapes, arguments.dtypes):
            models.append(Cell(SHAPES[shape], dtype, arguments, plan).run())
            bandwidths.append(measure_bandwidth(arguments.threads))
        exactness = None if arguments.no_accuracy else accuracy(arguments)
    bandwidth = best_bandwidth(bandwidths)
    add_limits(models, bandwidth["bytes_per_second"])
    document = {
        "benchmark": "steady",
        "question": __doc__.splitlines()[0],
        "quick": arguments.quick,
        "settings": {"sinks": SINKS, "window": WINDOW, "chunk": CHUNK, "batch": 1, "threads": arguments.threads}
        | {"rounds": plan.rounds, "positions": arguments.positions},
        "machine": machine.record() | {"busy_percent_before": busy},
        "bandwidth": bandwidth,
        "models": models,
        "accuracy": exactness,
    }
    document["figures"] = steady_report.figures(document)
    steady_report.show(document)
    if arguments.plot:
        steady_report.plot(document, arguments.plot)
    report.finish(document, arguments.json)


if __name__ == "__main__":
    main()
