"""Does a server survive whatever is sent to it, and does nobody else notice?

    python -m bench.serve_fuzz --connections 10000 --seed 0

Connections that are garbled, cut, lying about their lengths, with JSON and WebSocket frames against the rules, with
events malformed and out of order, left at any moment with and without a goodbye (bench/robust/cases.py), eight at once,
beside healthy sessions that append and ask all the time.  Looked at afterwards:

    crash     the process lives, /health is ok, no answer had status 500, nothing was written to standard error
    leak      resident set, open files, threads and tasks after each tenth, and sessions at the end
    slow      of 200 connections that send a header or a body byte by byte, how many are shut out in 90 seconds
    effect    each answer of the healthy sessions is that of a session alone; their waits beside and without the attack

The shipped model, budget 256, with --state, in float32: in bfloat16 a token may hang on the company that a session has
in a batch, so that a session alone is no measure.  Last line: one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections import Counter
from typing import Any

import httpx
import psutil

from bench.machine import record
from bench.report import say
from bench.robust.attack import Healthy, attack, crawl, settle
from bench.robust.cases import Cases
from bench.robust.process import started
from penstock.models.load import load

BUDGET = 256


def usage(pid: int, http: httpx.Client) -> dict[str, int]:
    """What the server's process holds."""
    process = psutil.Process(pid)
    [tasks] = [line for line in http.get("/metrics").text.splitlines() if line.startswith("penstock_tasks ")]
    return {
        "rss": process.memory_info().rss, "files": process.num_fds(), "threads": process.num_threads(),
        "tasks": round(float(tasks.split()[-1])),
    }  # fmt: skip


def fuzz(connections: int, seed: int, healthy: int) -> dict[str, Any]:
    """Attack one server; what was found."""
    model = load(None, dtype="float32")
    with (
        tempfile.TemporaryDirectory() as folder,
        started("--state", folder, "--budget", BUDGET, "--dtype", "float32") as server,
    ):
        http = server.http
        ids = {f"healthy-{i}" for i in range(healthy)}
        stops = threading.Event()
        others = [Healthy(server.address, id, stops) for id in sorted(ids)]
        for other in others:
            http.post("/v1/sessions", json={"id": other.id}).raise_for_status()
        threads = [threading.Thread(target=other.run, daemon=True) for other in others]
        for thread in threads:
            thread.start()
        time.sleep(10)
        quiet = [wait for other in others for wait in other.waits]
        cases = Cases(seed, model.name)
        began = time.perf_counter()
        kinds: Counter[str] = Counter()
        held = []
        for _ in range(10):
            kinds += attack(server.address, cases, connections // 10)
            settle(server.address, ids)
            held.append(usage(server.process.pid, http))
        spent = time.perf_counter() - began
        slow = crawl(server.address, 200, 90.0)
        left = settle(server.address, ids)
        loud = [wait for other in others for wait in other.waits[-(len(other.waits) * 9 // 10) :]]
        stops.set()
        for thread in threads:
            thread.join(120)
        metrics = http.get("/metrics").text.splitlines()
        requests = [line for line in metrics if line.startswith("penstock_requests_total")]
        failed = sum(float(line.split()[-1]) for line in requests if 'status="500"' in line)
        is_alive = server.process.poll() is None
        errors = server.errors.read_text()
        wrong = sum(other.wrong(model, BUDGET) for other in others)
    return {
        "connections": sum(kinds.values()), "kinds": dict(kinds), "seed": seed, "seconds": round(spent, 1),
        "alive": is_alive, "status_500": int(failed),
        "written": dict(Counter(errors.splitlines()).most_common(40)), **left, **slow, "held": held,
        "healthy_answers": sum(len(o.answers) for o in others),
        "healthy_wrong": wrong, "healthy_failures": [text for o in others for text in o.failures],
        "median_wait_seconds": {"alone": statistics.median(quiet), "beside": statistics.median(loud)},
    }  # fmt: skip


def main() -> None:
    """Attack, look, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--healthy", type=int, default=4)
    arguments = parser.parse_args()
    result = fuzz(arguments.connections, arguments.seed, arguments.healthy)
    say(f"{result['connections']} connections in {result['seconds']} s: {result['kinds']}")
    say(f"alive {result['alive']}, health {result['health']}, status 500: {result['status_500']}, "
        f"lines on standard error: {sum(result['written'].values())}")  # fmt: skip
    for number, held in enumerate(result["held"], 1):
        say(f"after tenth {number:2}: {held}")
    say(f"slow ones shut out: {result['shut_out']} of {result['slow']}, {result['with_408']} with status 408")
    say(f"sessions left over: {result['extra_sessions']}, answers or connections still open: {result['busy']:.0f}")
    say(f"healthy sessions: {result['healthy_answers']} answers, {result['healthy_wrong']} wrong, "
        f"{len(result['healthy_failures'])} failures, median wait {result['median_wait_seconds']}")  # fmt: skip
    print(json.dumps({**result, "machine": record()}))


if __name__ == "__main__":
    main()
