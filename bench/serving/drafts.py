"""Speculative decoding: tokens per second of one session with guesses and without, and how many guesses were right."""

from __future__ import annotations

import statistics
import time
from typing import Any

from bench.report import say, table
from bench.serving.common import Text
from penstock.engine import Drafting, Engine, NGram, SmallModel
from penstock.models.load import Model, load
from penstock.testing import tiny_model


def _rate(engine: Engine, streams: list[list[int]], tokens: int) -> tuple[float, list[str]]:
    spent, said, texts = 0.0, 0, []
    for stream in streams:
        session = engine.open()
        session.append(stream)
        engine.drain()
        answer = session.ask(max_new=tokens)
        engine.step()
        began, before = time.perf_counter(), engine.tokens_decoded
        texts.append(answer.text())
        spent += time.perf_counter() - began
        said += engine.tokens_decoded - before
        session.close()
    return said / spent, texts


def run(model: Model, sessions: int, tokens: int, budget: int, rounds: int) -> dict[str, Any]:
    """No guesses, n-gram guesses, and a model of one random layer as the price of a drafter that is never right."""
    text = Text(model)
    streams = [text.take(2 * budget) for _ in range(sessions)]
    one = load(tiny_model("llama", vocab_size=model.attached.vocabulary), tokenizer=model.tokenizer)
    engines = {
        "none": Engine(model, "streaming-llm", budget, rows=1),
        "ngram": Engine(model, "streaming-llm", budget, rows=1, draft=Drafting(NGram())),
        "small model (random)": Engine(model, "streaming-llm", budget, rows=1, draft=Drafting(SmallModel(one), most=2)),
        "the model itself": Engine(model, "streaming-llm", budget, rows=1, draft=Drafting(SmallModel(model), most=4)),
    }  # fmt: skip
    rates: dict[str, list[float]] = {name: [] for name in engines}
    same = dict.fromkeys(engines, 0.0)
    for _ in range(rounds):
        texts: list[str] = []
        for name, engine in engines.items():
            rate, said = _rate(engine, streams, tokens)
            rates[name].append(rate)
            texts = texts or said
            same[name] = sum(a == b for a, b in zip(texts, said)) / len(texts)
    result: dict[str, Any] = {"sessions": sessions, "tokens": tokens, "budget": budget}
    rows = []
    for name, engine in engines.items():
        rate, guesses = statistics.median(rates[name]), engine.guesses
        right = guesses.right / guesses.made if guesses and guesses.made else None
        result[name] = {
            "tokens_per_second": rate, "times_none": rate / statistics.median(rates["none"]),
            "same_answers": same[name],
            "made": guesses.made if guesses else 0, "right": right,
        }  # fmt: skip
        made = guesses.made / max(1, engine.tokens_decoded) if guesses else 0.0
        shown = "-" if right is None else f"{right:.0%}"
        rows.append([
            name, f"{rate:.0f}", f"{result[name]['times_none']:.2f}", f"{made:.2f}", shown, f"{same[name]:.0%}",
        ])  # fmt: skip
        engine.close()
    say(table(["guesses by", "tokens/s", "times none", "made per token", "right", "same answers"], rows))
    return result
