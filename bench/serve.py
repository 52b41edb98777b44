"""What does an engine of many sessions reach on this machine? One figure per `--only` name, all of them by default.

    python -m bench.serve                        everything, about ten minutes on two cores
    python -m bench.serve --only batch,pace

    batch     decode throughput of 16 rows together against 16 sessions one after another
    live      500 sessions fed in bursts over 30 simulated minutes: the slope of the resident set
    first     time to first token, a context streamed in against the same one sent whole (the shape of a crawl)
    pace      time between tokens of live sessions while another reads a file of 200,000 tokens, against alone
    goodput   promises kept by first-come and past-future admission when memory is short
    drafts    tokens per second with guesses (n-gram, small model) and without
    load      a public load generator (locust, in an environment of its own) against `penstock serve`

The shipped model.  Prints tables for people; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import serve_batch
from bench.machine import busy_percent, quiet, record
from bench.peers.protocol import Skip
from bench.report import finish, say
from bench.serving import drafts, first, goodput, live, load_public, pace
from penstock.engine.allocator import share_arenas
from penstock.models.load import load
from penstock.models.paths import PATHS


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="batch,live,first,pace,goodput,drafts,load")
    parser.add_argument("--threads", type=int, default=1, help="threads of the model; the rest of the machine is idle")
    parser.add_argument("--budget", type=int, default=256)
    parser.add_argument("--rows", type=int, default=16, help="batch: sessions")
    parser.add_argument("--path", default="auto", choices=PATHS, help="batch, pace: how steps are run")
    parser.add_argument("--sessions", type=int, default=500, help="live: sessions")
    parser.add_argument("--minutes", type=float, default=30, help="live: simulated minutes")
    parser.add_argument("--rate", type=float, default=0.5, help="live: tokens per simulated second and session")
    parser.add_argument("--burst", type=int, default=40, help="live: tokens at once")
    parser.add_argument("--plan", action="store_true", help="live: leave out the model's pass")
    parser.add_argument("--ram", default="128MiB", help="live: for demoted sessions, the others are on disk")
    parser.add_argument("--pages", type=int, default=24, help="first: pages of a request, over ten seconds")
    parser.add_argument("--tokens", type=int, default=6000, help="first: tokens of a request")
    parser.add_argument("--live", type=int, default=4, help="pace: sessions that answer")
    parser.add_argument("--file", type=int, default=200_000, help="pace: tokens of the file")
    parser.add_argument("--processor-time", action="store_true", help="pace: gaps in processor time")
    parser.add_argument("--requests", type=int, default=300, help="goodput: requests")
    parser.add_argument("--loads", default="12,16,20,28", help="goodput: requests per second")
    parser.add_argument("--capacity", type=int, default=4400, help="goodput: entries of the device")
    parser.add_argument("--users", type=int, default=8, help="load: users of the load generator")
    parser.add_argument("--json", type=Path, default=None)
    a = parser.parse_args()
    share_arenas()  # as `penstock serve` does
    torch.set_num_threads(a.threads)
    model = load(None)
    figures: dict[str, Callable[[], dict[str, Any]]] = {
        "batch": lambda: serve_batch.run(model, a.rows, a.budget, tokens=64, rounds=5, path=a.path),
        "live": lambda: live.run(model, a.sessions, a.minutes, a.rate, a.burst, a.budget, a.ram, a.plan),
        "first": lambda: first.run(model, 3, a.pages, 10.0, a.tokens, a.budget),
        "pace": lambda: pace.run(model, a.live, a.file, a.budget, a.processor_time, a.path),
        "goodput": lambda: goodput.run(
            model, a.requests, [float(load) for load in a.loads.split(",")], a.capacity, first=5.0, between=0.5
        ),
        "drafts": lambda: drafts.run(model, sessions=4, tokens=96, budget=a.budget, rounds=3),
        "load": lambda: load_public.run(a.users, seconds=20),
    }  # fmt: skip
    names = a.only.split(",")
    if unknown := set(names) - set(figures):
        parser.error(f"there is no figure {', '.join(sorted(unknown))}: choose from {', '.join(figures)}")
    result: dict[str, Any] = {"machine": record(), "threads": a.threads, "busy_percent": busy_percent()}
    with quiet():
        for name in names:
            say(f"\n== {name}")
            began = time.perf_counter()
            try:
                result[name] = figures[name]()
            except Skip as reason:
                result[name] = {"skipped": str(reason)}
                say(f"skipped: {reason}")
            result[name]["wall_seconds_in_all"] = time.perf_counter() - began
    finish(result, a.json)


if __name__ == "__main__":
    main()
