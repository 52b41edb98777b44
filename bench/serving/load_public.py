"""A public load generator against `penstock serve`: locust, in an environment of its own under `.peers/`."""

from __future__ import annotations

import csv
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench.peers.environments import ROOT, python_of
from bench.peers.protocol import Skip
from bench.report import say, table
from bench.robust.process import started


def run(users: int, seconds: int) -> dict[str, Any]:
    """`users` ask for short chat completions without pause for `seconds`, streamed and whole."""
    python = python_of("locust")
    with started() as server, tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [
                str(python), "-m", "locust", "--headless", "--only-summary", "-f",
                str(ROOT / "bench" / "serving" / "locustfile.py"), "-H", server.address, "-u", str(users),
                "-r", str(users),
                "-t", f"{seconds}s", "--csv", f"{folder}/out",
            ],
            capture_output=True, text=True, check=False, timeout=seconds + 120,
        )  # fmt: skip
        stats = Path(folder) / "out_stats.csv"
        if not stats.exists():
            raise Skip(f"locust gave no result: {result.stderr.strip().splitlines()[-1:]}")
        rows = list(csv.DictReader(stats.open(encoding="utf-8")))
        failures = list(csv.DictReader((Path(folder) / "out_failures.csv").open(encoding="utf-8")))
    found = {
        row["Name"]: {
            "requests": int(row["Request Count"]), "failures": int(row["Failure Count"]),
            "requests_per_second": float(row["Requests/s"]), "p50_ms": float(row["50%"]), "p99_ms": float(row["99%"]),
        }
        for row in rows
    }  # fmt: skip
    shown = [
        [name, str(r["requests"]), str(r["failures"]), f"{r['requests_per_second']:.1f}", f"{r['p50_ms']:.0f} ms",
         f"{r['p99_ms']:.0f} ms"]
        for name, r in found.items()
    ]  # fmt: skip
    say(table([f"locust, {users} users, {seconds} s", "requests", "failures", "per second", "p50", "p99"], shown))
    return {"users": users, "seconds": seconds, "tool": "locust", "by_name": found, "failures": failures}
