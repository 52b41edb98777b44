"""Do archives hold their limits, and the pace, while the stream grows to a million tokens?

The shipped model reads the facts world.  Up to 12,000 tokens everything is read by the model.  From there to each
later length the archive is filled without it: blocks made of keys and values that the model itself gave for the real
text, with a little noise so that no two are equal, are sealed one after the other by the archive's own code, written to
the disk and listed in its index; then the stream's counter is moved.  At each length the model reads on, step by step,
and forks are asked about the text just read.

Beside the time on the clock stands the processor time of the same step, which other work on the machine hardly changes
(it leaves out waiting for the disk).  One process per method, so that resident sets are its own.  The last line is one
JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import machine, measure, report
from bench.peers.protocol import resident_bytes

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("infllm", "rekv", "lserve", "double-sparsity")
CHUNK, STEPS, LEAD, QUESTIONS, ANSWERED = 64, 96, 8, 12, 8
REAL = 12_000  # tokens that the model reads at first
PIECE = 1024  # tokens sealed at once by the filling
LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
GOAL = 1.3


class Took(NamedTuple):
    """Seconds."""

    wall: float
    cpu: float

    @staticmethod
    def now() -> Took:
        return Took(time.perf_counter(), time.process_time())

    @staticmethod
    def since(began: Took) -> Took:
        now = Took.now()
        return Took(now.wall - began.wall, now.cpu - began.cpu)


def spread(found: list[Took]) -> dict[str, float]:
    """Milliseconds: on the clock, and of the processor."""
    walls, cpus = zip(*found)
    return {
        "p50": 1e3 * measure.quantile(walls, 0.5),
        "p99": 1e3 * measure.quantile(walls, 0.99),
        "cpu": 1e3 * measure.quantile(cpus, 0.5),
        "cpu_mean": 1e3 * statistics.fmean(cpus),
    }


class Growing:
    """A session whose archive grows."""

    def __init__(self, memory: str, budget: int) -> None:
        from penstock.compare.stream import facts_stream
        from penstock.models.load import load
        from penstock.session import Session

        model = load()
        self.stream = facts_stream(model, REAL + len(LENGTHS) * (STEPS + LEAD) * CHUNK + 10_000)
        self.session = Session(model, memory, budget, chunk=CHUNK, path="eager")
        self.memory = self.session._memory
        self.at = 0  # in the text
        self.ram = self.disk = 0  # peaks
        self.spare: dict[int, Any] = {}

    @property
    def length(self) -> int:
        """Tokens of the stream."""
        return self.memory.length()

    def read(self, tokens: int) -> list[Took]:
        """Read on in the text; what each step took."""
        steps = []
        for first in range(self.at, self.at + tokens, CHUNK):
            ids = self.stream.ids[first : min(first + CHUNK, self.at + tokens)]
            began = Took.now()
            self.session.ingest(ids)
            steps.append(Took.since(began))
            self.look()
        self.at += tokens
        return steps

    def look(self) -> None:
        """Keep the peaks."""
        self.ram, self.disk = max(self.ram, self.memory.ram_bytes), max(self.disk, self.memory.disk_bytes)

    def lanes(self) -> Iterator[Any]:
        """All lanes whose last part is an archive."""
        for group in self.memory.groups:
            for layer in group.lanes[0]:
                yield from layer

    def fill(self, length: int) -> None:
        """Let the archives grow until the stream has this length."""
        tokens = (length - self.length) // PIECE * PIECE
        noise = torch.Generator().manual_seed(length)
        for done in range(0, tokens, PIECE):
            for lane in self.lanes():
                state = lane.states[-1]
                blocks = state["blocks"]
                first = blocks.ends[1] + 1
                entries = self._made(lane, blocks, first, noise)
                query = torch.zeros(len(entries.key), 1, 1, entries.key.shape[-1])
                lane.states = (*lane.states[:-1], {**state, "blocks": blocks.seal(entries, query)})
            self.look()
            if done % (64 * PIECE) == 0:
                print(f"\r  {self.length + done} tokens ", end="", file=sys.stderr, flush=True)
        for lane in self.lanes():  # they are where they should be; everything else moves
            state = lane.states[-1]
            lane.states = (*lane.states[:-1], {**state, "blocks": state["blocks"].moved(-tokens)})
        self.memory.shift(tokens)
        print("\r" + " " * 30 + "\r", end="", file=sys.stderr)

    def _made(self, lane: Any, blocks: Any, first: int, noise: torch.Generator) -> Any:
        """PIECE entries from `first` on, from real ones."""
        if id(lane) not in self.spare:
            size = blocks.layout.block
            self.spare[id(lane)] = blocks.fetch(torch.arange(len(blocks) - REAL // 2 // size, len(blocks)))
        spare = self.spare[id(lane)]
        start = int(torch.randint(len(spare) - PIECE, (1,), generator=noise))
        some = spare.cut(start, start + PIECE)
        moved = torch.arange(first, first + PIECE).expand_as(some.seen)
        return replace(
            some, key=_noisy(some.key, noise), value=_noisy(some.value, noise), seen=moved,
            place=None if some.place is None else moved,
        )  # fmt: skip

    def ask(self) -> tuple[list[Took], list[Took]]:
        """What the first token of an answer took, and each later one; on forks."""
        from penstock.core import Phase

        first, later = [], []
        known = [fact for fact in self.stream.facts if fact.end < self.at]
        for fact in known[:: max(1, len(known) // QUESTIONS)][:QUESTIONS]:
            fork = self.session.fork()
            began = Took.now()
            fork.ingest(fact.question, Phase.ASK)
            token = int(fork.logits.argmax())
            first.append(Took.since(began))
            for _ in range(ANSWERED):
                began = Took.now()
                fork.ingest([token], Phase.ANSWER)
                token = int(fork.logits.argmax())
                later.append(Took.since(began))
            self.look()
            fork.runner.close()
        return first, later


def _noisy(x: Tensor, noise: torch.Generator) -> Tensor:
    return (x + 0.02 * x.float().std() * torch.randn(x.shape, generator=noise)).to(x.dtype)


def run(memory: str, budget: int, lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """One row per length."""
    growing = Growing(memory, budget)
    rows = []
    for length in lengths:
        began = time.perf_counter()
        before = length - (STEPS + LEAD) * CHUNK
        if length <= REAL:
            growing.read(max(0, before - growing.length))
        else:
            growing.read(max(0, REAL - growing.at))
            growing.fill(before)
        growing.ask()  # what is on the disk only comes back as it would in use
        growing.read(LEAD * CHUNK)
        steps = growing.read(STEPS * CHUNK)
        first, later = growing.ask()
        rows.append(
            {
                "length": growing.length,
                "step_ms": spread(steps),
                "first_token_ms": spread(first),
                "answer_ms": spread(later),
                "device": growing.memory.nbytes,
                "ram": growing.memory.ram_bytes,
                "ram_peak": growing.ram,
                "disk": growing.memory.disk_bytes,
                "disk_peak": growing.disk,
                "resident": resident_bytes(),
                "events": list(growing.memory.events)[-1:],
                "seconds": time.perf_counter() - began,
            }
        )
        print(f"  {memory.partition(':')[0]}: {json.dumps(rows[-1])}", file=sys.stderr, flush=True)
    return rows


def ratios(rows: list[dict[str, Any]]) -> dict[str, float] | None:
    """The last length over 10,000."""
    base = next((row for row in rows if row["length"] >= 10_000), None)
    if base is None or base is rows[-1]:
        return None
    last = rows[-1]
    names = {"step": "step_ms", "first token": "first_token_ms", "answer": "answer_ms"}
    return {f"{name} {key}": last[at][key] / base[at][key] for name, at in names.items() for key in ("p50", "cpu")}


def show(document: dict[str, Any]) -> None:
    """Tables for people."""
    report.say(document["question"])
    ram, disk = document["limits"]["ram"], document["limits"]["disk"]
    report.say(f"budget {document['budget']} entries, ram={ram}, disk={disk}, steps of {CHUNK} tokens")
    heads = ["tokens", "step p50", "p99", "cpu", "first token", "cpu", "answer", "cpu"]
    heads += ["device", "RAM", "peak", "disk", "resident"]
    for name, rows in document["rows"].items():
        report.say(f"\n{name} (ms; MiB)")
        lines = [
            [
                f"{row['length']:,}", *[f"{row['step_ms'][k]:.1f}" for k in ("p50", "p99", "cpu")],
                *[f"{row[k][m]:.1f}" for k in ("first_token_ms", "answer_ms") for m in ("p50", "cpu")],
                *[f"{row[k] / (1 << 20):.1f}" for k in ("device", "ram", "ram_peak", "disk", "resident")],
            ]
            for row in rows
        ]  # fmt: skip
        report.say(report.table(heads, lines))
        if document["ratios"][name]:
            found = ", ".join(f"{key} {value:.2f}" for key, value in document["ratios"][name].items())
            report.say(f"longest over 10,000 tokens (goal {GOAL}): {found}")
        for event in rows[-1]["events"]:
            report.say(f"event: {event}")
    report.say()


def plot(document: dict[str, Any], path: Path) -> None:
    """Latency and bytes against length."""
    drawing, axes = report.figure(3)
    for i, (name, rows) in enumerate(document["rows"].items()):
        at, color = [row["length"] for row in rows], f"C{i}"
        axes[0].plot(at, [row["step_ms"]["p50"] for row in rows], color=color, label=name, marker="o")
        axes[0].plot(at, [row["step_ms"]["p99"] for row in rows], color=color, linestyle=":")
        axes[1].plot(at, [row["first_token_ms"]["p50"] for row in rows], color=color, label=name, marker="o")
        for key, style in (("device", ":"), ("ram", "-"), ("disk", "--")):
            axes[2].plot(at, [max(1, row[key]) / (1 << 20) for row in rows], style, color=color)
    axes[2].plot([], [], "k:", label="device")
    axes[2].plot([], [], "k-", label="RAM")
    axes[2].plot([], [], "k--", label="disk")
    axes[2].set_yscale("log")
    for axis, name in zip(axes, ("ms per step of 64, p50 and p99", "ms to the first token of an answer", "MiB")):
        axis.set_xscale("log")
        axis.set_ylim(bottom=0 if name != "MiB" else None)
        axis.set_xlabel("tokens of the stream")
        axis.set_ylabel(name)
        axis.legend(fontsize=8)
    report.save_figure(drawing, path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.archive_growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", action="append", choices=METHODS, help="default: all")
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--length", type=int, action="append", help=f"default: {LENGTHS}")
    parser.add_argument("--ram", default="256MiB")
    parser.add_argument("--disk", default="4GiB")
    parser.add_argument("--folder", type=Path, default=None, help="where the disk tier is made (default: a new one)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=Path, action="append", help="documents of earlier runs whose rows are shown too")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=Path("runs/bench/archive_growth.png"))
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    lengths = tuple(given.length or LENGTHS)
    if given.alone:
        torch.set_num_threads(given.threads)
        with torch.inference_mode(), tempfile.TemporaryDirectory(dir=given.folder) as folder:
            disk = f",disk={given.disk},folder={folder}/blocks" if given.disk else ""
            print(json.dumps(run(f"{given.memory[0]}:ram={given.ram}{disk}", given.budget, lengths)))
        return
    found: dict[str, Any] = {}
    for path in given.rows or []:
        found |= json.loads(path.read_text(encoding="utf-8"))["rows"]
    busy = machine.busy_percent()
    for name in given.memory or (METHODS if not found else ()):
        command = [sys.executable, "-m", "bench.archive_growth", "--alone", "--memory", name, "--ram", given.ram]
        command += ["--budget", str(given.budget), "--disk", given.disk, "--threads", str(given.threads)]
        command += [word for length in lengths for word in ("--length", str(length))]
        command += ["--folder", str(given.folder)] if given.folder else []
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name} failed with exit status {done.returncode}")
        found[name] = json.loads(done.stdout.strip().splitlines()[-1])
    document = {
        "benchmark": "archive_growth",
        "question": (__doc__ or "").splitlines()[0],
        "budget": given.budget,
        "limits": {"ram": given.ram, "disk": given.disk},
        "machine": machine.record() | {"busy_percent_before": busy},
        "rows": found,
        "ratios": {name: ratios(rows) for name, rows in found.items()},
    }
    show(document)
    if given.plot:
        plot(document, given.plot)
    report.finish(document, given.json)


if __name__ == "__main__":
    main()
