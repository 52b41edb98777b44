"""Many sessions live at once: does the process grow while 500 streams are fed in bursts for half an hour?"""

from __future__ import annotations

import gc
import random
import tempfile
import time
from typing import Any

import psutil

from bench.report import say, table
from bench.serving.common import Text, leave_out_the_model
from penstock.core import SimulatedClock
from penstock.engine import Engine, Place
from penstock.models.load import Model


def slope(points: list[tuple[float, float]]) -> float:
    """Least-squares slope of y over x."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def _objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def run(
    model: Model, sessions: int, minutes: float, rate: float, burst: int, budget: int, ram: str, is_plan: bool
) -> dict[str, Any]:
    """`sessions` streams get `rate` tokens per simulated second each, `burst` at a time, for `minutes`.

    They begin with full memories.  `is_plan` leaves out the model's pass: queues, plans, logs, rows and the ways
    between device, RAM and disk are as ever, so that the full rate can be run in minutes.
    """
    text, clock, process = Text(model), SimulatedClock(), psutil.Process()
    order = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(model, "streaming-llm", budget, rows=16, ram=ram, folder=folder, clock=clock)
        if is_plan:
            leave_out_the_model(engine)
        live = [engine.open(f"s{i:03}") for i in range(sessions)]
        for at in range(0, sessions, 16):  # every memory is full, and every session has been sent away once
            for session in live[at : at + 16]:
                session.append(text.take(budget + 64))
            engine.drain()
        warm = engine.stats()
        every = burst / rate  # seconds between two bursts of one session
        due = sorted((order.random() * every, i) for i in range(sessions))
        began, end, fed = time.perf_counter(), minutes * 60, 0
        samples: list[tuple[float, float]] = []  # (simulated minutes, resident MB)
        objects: list[int] = []  # behind the first quarter, at the end
        rounds = 0
        while clock.now() < end:
            now = clock.now()
            moment, which = due[rounds % sessions]
            moment += rounds // sessions * every
            if moment >= end:
                break
            clock.sleep(moment - now)
            live[which].append(text.take(burst))
            fed += burst
            rounds += 1
            if rounds % 16 == 0:  # as many as there are rows: steps are shared, as they would be in a busy second
                engine.drain()
            if rounds % max(1, sessions // 8) == 0:
                samples.append((clock.now() / 60, process.memory_info().rss / 1e6))
                if not objects and clock.now() > end / 4:
                    objects.append(_objects())
        engine.drain()
        objects.append(_objects())
        wall = time.perf_counter() - began
        account = engine.check()
        assert account["pending"] == 0, "everything that was given was read"
        assert all(s.core.tokens == s.tokens for s in live)
        places = {place.value: sum(s.place is place for s in live) for place in Place}
        stats = engine.stats()
        engine.close()
    settled = samples[len(samples) // 4 :]
    growth = slope(settled)
    result = {
        "sessions": sessions, "simulated_minutes": minutes, "tokens_per_second_each": rate, "burst": burst,
        "model_left_out": is_plan, "tokens": fed, "wall_seconds": wall,
        "tokens_per_wall_second": fed / wall, "places": places,
        "promotions": stats.promotions - warm.promotions, "demotions": stats.demotions - warm.demotions,
        "ram_bytes": stats.ram_bytes,
        "disk_bytes": stats.disk_bytes, "resident_mb_first": settled[0][1], "resident_mb_last": settled[-1][1],
        "objects": objects, "resident_mb_per_simulated_minute": growth,
        "resident_mb_spread": max(y for _, y in settled) - min(y for _, y in settled),
    }  # fmt: skip
    say(
        table(
            ["live sessions", "value"],
            [
                ["sessions, rows", f"{sessions}, 16"],
                ["simulated minutes", f"{minutes:g}" + (", the model's pass left out" if is_plan else "")],
                ["tokens per simulated second each, per burst", f"{rate:g}, {burst}"],
                ["tokens read, wall seconds", f"{fed:,}, {wall:.0f}"],
                ["tokens per wall second", f"{fed / wall:,.0f}"],
                ["on the device / in RAM / on disk", " / ".join(str(places[p]) for p in ("device", "ram", "disk"))],
                ["brought back, sent away", f"{result['promotions']:,}, {result['demotions']:,}"],
                ["Python objects behind the first quarter, at the end", ", ".join(f"{n:,}" for n in objects)],
                ["resident set behind the first quarter, at the end", f"{settled[0][1]:.1f}, {settled[-1][1]:.1f} MB"],
                ["slope of the resident set", f"{growth:+.4f} MB per simulated minute"],
            ],
        )
    )
    return result
