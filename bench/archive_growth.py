"""Do archives hold their limits, and the pace, while the stream grows to a million tokens?

The shipped model reads the facts world.  Up to 12,000 tokens everything is read by the model.  From there to each
later length the archive is filled without it: blocks made of keys and values that the model itself gave for the real
text, with a little noise so that no two are equal, are sealed one after the other by the archive's own code, written to
the disk and listed in its index; then the stream's counter is moved.  At each length the model reads on, step by step,
and forks are asked about the text just read.

Beside the time on the clock stands the processor time of the same step (it leaves out waiting for the disk).  Other
work on the machine changes both, so each longer stream is measured by turns with one of 10,000 tokens in the same
process, and ratios are of the two.  One process per method, so that resident sets are its own (the short stream
included).  The last line is one JSON document.
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
from copy import copy
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
TURN = 8  # steps until it is the other stream's turn
SHORT = 10_000  # tokens of the stream that the others are compared with
LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
GOAL = 1.3
_BYTES = ("device", "ram", "ram_peak", "disk", "resident")


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

    def __init__(self, memory: str, budget: int, path: str) -> None:
        from penstock.compare.stream import facts_stream
        from penstock.models.load import load
        from penstock.session import Session

        model = load()
        self.stream = facts_stream(model, REAL + len(LENGTHS) * (STEPS + LEAD) * CHUNK + 10_000)
        self.session = Session(model, memory, budget, chunk=CHUNK, path=path)
        self.memory = self.session._memory
        self.at = 0  # in the text
        self.ram = self.disk = 0  # peaks
        self.spare: dict[int, Any] = {}

    @property
    def length(self) -> int:
        """Tokens of the stream."""
        return self.memory.length()

    def fork(self) -> Growing:
        """Another one with the same past."""
        other = copy(self)
        other.session = self.session.fork()
        other.memory = other.session._memory
        return other

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

    def ask(self) -> Iterator[tuple[Took, list[Took]]]:
        """For each question, on a fork: what the first token of the answer took, and each later one."""
        from penstock.core import Phase

        known = [fact for fact in self.stream.facts if fact.end < self.at]
        for fact in known[:: max(1, len(known) // QUESTIONS)][:QUESTIONS]:
            fork, later = self.session.fork(), []
            began = Took.now()
            fork.ingest(fact.question, Phase.ASK)
            token = _likeliest(fork)
            first = Took.since(began)
            for _ in range(ANSWERED):
                began = Took.now()
                fork.ingest([token], Phase.ANSWER)
                token = _likeliest(fork)
                later.append(Took.since(began))
            self.look()
            fork.runner.close()
            yield first, later


def _likeliest(session: Any) -> int:
    return int(session.logits.argmax())


def taken(streams: list[Growing]) -> list[dict[str, Any]]:
    """What steps and answers take in each, by turns."""
    steps: list[list[Took]] = [[] for _ in streams]
    for _ in range(0, STEPS, TURN):
        for found, stream in zip(steps, streams):
            found += stream.read(TURN * CHUNK)
    first: list[list[Took]] = [[] for _ in streams]
    later: list[list[Took]] = [[] for _ in streams]
    for answers in zip(*(stream.ask() for stream in streams)):
        for i, (one, others) in enumerate(answers):
            first[i].append(one)
            later[i] += others
    return [
        {"step_ms": spread(steps[i]), "first_token_ms": spread(first[i]), "answer_ms": spread(later[i])}
        for i in range(len(streams))
    ]


def _noisy(x: Tensor, noise: torch.Generator) -> Tensor:
    return (x + 0.02 * x.float().std() * torch.randn(x.shape, generator=noise)).to(x.dtype)


def run(memory: str, folder: str, budget: int, lengths: tuple[int, ...], path: str) -> list[dict[str, Any]]:
    """One row per length; `folder` {} in the memory is a new one for each stream."""
    growing, short = (Growing(memory.format(f"{folder}/{name}"), budget, path) for name in ("long", "short"))
    short.read(SHORT - STEPS * CHUNK)
    rows = []
    for length in lengths:
        began = time.perf_counter()
        before = length - (STEPS + LEAD) * CHUNK
        if length <= REAL:
            growing.read(max(0, before - growing.length))
        else:
            growing.read(max(0, REAL - growing.at))
            growing.fill(before)
        list(growing.ask())  # what is on the disk only comes back as it would in use
        growing.read(LEAD * CHUNK)
        other = short.fork()
        found, beside = taken([growing, other])
        other.session.runner.close()
        rows.append(
            {
                "length": growing.length,
                **found,
                "beside": {"length": other.length, **beside},
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


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """Over the short stream."""
    names = {"step": "step_ms", "first token": "first_token_ms", "answer": "answer_ms"}
    return {
        f"{name} {key}": row[at][key] / row["beside"][at][key] for name, at in names.items() for key in ("p50", "cpu")
    }


def show(document: dict[str, Any]) -> None:
    """Tables for people."""
    report.say(document["question"])
    ram, disk = document["limits"]["ram"], document["limits"]["disk"]
    report.say(f"budget {document['budget']} entries, ram={ram}, disk={disk}, steps of {CHUNK} tokens")
    heads = ["tokens", "step p50", "p99", "cpu", "first token", "cpu", "answer", "cpu"]
    heads += ["device", "RAM", "peak", "disk", "resident"]
    for name, rows in document["rows"].items():
        report.say(f"\n{name} (ms; MiB)")
        lines = []
        for row in rows:
            lines.append([f"{row['length']:,}", *_times(row), *(f"{row[k] / (1 << 20):.1f}" for k in _BYTES)])
            if row["length"] > row["beside"]["length"]:
                lines.append([f"({row['beside']['length']:,})", *_times(row["beside"]), *[""] * len(_BYTES)])
        report.say(report.table(heads, lines))
        for row in rows:
            if row["length"] > row["beside"]["length"]:
                found = ", ".join(f"{key} {value:.2f}" for key, value in ratios(row).items())
                report.say(f"{row['length']:,} over {row['beside']['length']:,} (goal {GOAL}): {found}")
        for event in rows[-1]["events"]:
            report.say(f"event: {event}")
    report.say()


def _times(row: dict[str, Any]) -> list[str]:
    steps = [f"{row['step_ms'][key]:.1f}" for key in ("p50", "p99", "cpu")]
    return steps + [f"{row[at][key]:.1f}" for at in ("first_token_ms", "answer_ms") for key in ("p50", "cpu")]


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
    parser.add_argument("--path", choices=("eager", "native"), default="native", help="default: native")
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
            disk = f",disk={given.disk},folder={{}}" if given.disk else ""
            print(
                json.dumps(run(f"{given.memory[0]}:ram={given.ram}{disk}", folder, given.budget, lengths, given.path))
            )
        return
    found: dict[str, Any] = {}
    for path in given.rows or []:
        found |= json.loads(path.read_text(encoding="utf-8"))["rows"]
    busy = machine.busy_percent()
    for name in given.memory or (METHODS if not found else ()):
        command = [sys.executable, "-m", "bench.archive_growth", "--alone", "--memory", name, "--ram", given.ram]
        command += ["--budget", str(given.budget), "--disk", given.disk, "--threads", str(given.threads)]
        command += ["--path", given.path]
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
        "path": given.path,
        "limits": {"ram": given.ram, "disk": given.disk},
        "machine": machine.record() | {"busy_percent_before": busy},
        "rows": found,
        "ratios": {name: {row["length"]: ratios(row) for row in rows} for name, rows in found.items()},
    }
    show(document)
    if given.plot:
        plot(document, given.plot)
    report.finish(document, given.json)


if __name__ == "__main__":
    main()
