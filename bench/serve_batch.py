"""How much faster do sessions answer together than one after another? Decode throughput of a batch of rows.

    python -m bench.serve_batch --rows 16 --budget 256 --tokens 64

The shipped model, each session with a full memory and text of its own, greedy answers of `--tokens` tokens. `together`
is one engine with so many rows; `in turn` the same engine with one row, one session after another; both without the
steps before the first token. The limit is what must be read per step (the weights once, the rows' memories) over the
measured bandwidth. Rounds alternate; medians. Last line: one JSON document.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from bench.bandwidth import measure_bandwidth
from bench.report import finish, say, table
from penstock.engine import Engine, Finish
from penstock.models.load import Model, load
from penstock.models.paths import PATHS
from penstock.worlds.library import heldout_text


def texts(model: Model, count: int, budget: int) -> list[list[int]]:
    """One piece of held-out text per session, longer than its memory."""
    ids: list[int] = []
    for text in heldout_text():
        ids += model.tokenizer(text)["input_ids"]
        if len(ids) >= count * budget * 2:
            break
    return [ids[i * budget * 2 : (i + 1) * budget * 2] for i in range(count)]


def seconds(engine: Engine, streams: list[list[int]], tokens: int) -> tuple[float, int]:
    """(seconds, tokens) of answers after full memories, without the steps before each first token."""
    spent, said = 0.0, 0
    sessions = [engine.open() for _ in streams]
    together = len(engine.rows) >= len(streams)
    for group in [sessions] if together else [[s] for s in sessions]:
        for session in group:
            session.append(streams[sessions.index(session)])
        engine.drain()
        answers = [session.ask(max_new=tokens) for session in group]
        while any(s.speaking is None and a.finish is None for s, a in zip(group, answers)):
            engine.step()
        before = engine.tokens_decoded
        began = time.perf_counter()
        engine.drain()
        spent += time.perf_counter() - began
        said += engine.tokens_decoded - before
        if any(answer.finish is Finish.ERROR for answer in answers):
            raise SystemExit("an answer failed: run the tests of the engine first.")
    for session in sessions:
        session.close()
    return spent, said


def run(model: Model, rows: int, budget: int, tokens: int, rounds: int, path: str = "auto") -> dict[str, Any]:
    """Rounds alternate; medians."""
    threads = torch.get_num_threads()
    streams = texts(model, rows, budget)
    batch = Engine(model, "streaming-llm", budget, rows=rows, path=path)
    single = Engine(model, "streaming-llm", budget, rows=1, path=path)
    rates: dict[str, list[float]] = {"together": [], "in turn": []}
    for _ in range(rounds):
        for name, engine in (("together", batch), ("in turn", single)):
            spent, said = seconds(engine, streams, tokens)
            rates[name].append(said / spent)
    bandwidth = float(measure_bandwidth(threads)["bytes_per_second"])
    weights = sum(p.numel() * p.element_size() for p in model.attached.hf.parameters())
    per_step = weights + rows * batch.row_nbytes
    limit = rows * bandwidth / per_step
    together, in_turn = (statistics.median(rates[name]) for name in ("together", "in turn"))
    say(
        table(
            [f"decoding, {rows} sessions, path {path}", "tokens/s", "of what bytes allow"],
            [
                ["together in one batch", f"{together:.0f}", f"{together / limit:.1%}"],
                ["one after another", f"{in_turn:.0f}", f"{in_turn / (bandwidth / (weights + batch.row_nbytes)):.1%}"],
                ["times faster", f"{together / in_turn:.2f}", ""],
            ],
        )
    )
    return {
        "rows": rows, "budget": budget, "threads": threads, "path": path,
        "tokens_per_second": {"together": together, "in_turn": in_turn},
        "times_faster": together / in_turn, "weight_bytes": weights, "row_bytes": batch.row_nbytes,
        "bandwidth_bytes_per_second": bandwidth, "fraction_of_limit": together / limit,
    }  # fmt: skip


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--budget", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--path", default="auto", choices=PATHS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    a = arguments
    finish(run(load(None), a.rows, a.budget, a.tokens, a.rounds, a.path), None)


if __name__ == "__main__":
    main()
