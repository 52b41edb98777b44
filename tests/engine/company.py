"""Engines under test, and the session alone that every session of an engine must equal."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

import penstock
from penstock import Session
from penstock.core import SimulatedClock
from penstock.engine import Engine, EngineSession
from penstock.models.load import TINY
from penstock.testing import tiny_model

TOKENIZER = AutoTokenizer.from_pretrained(TINY)
MODEL = penstock.load(tiny_model("llama", vocab_size=len(TOKENIZER)), tokenizer=TOKENIZER)
TEXT = (
    "In the beginning was the log, and the log was with the café — naïve, 日本語 and 🙂🙃 included.\n"
    "    def f(x):\n\t\treturn x ** 2  # 12345.678e-9\n"
) * 6


def engine(memory: str = "streaming-llm", budget: int | None = 24, **options: Any) -> Engine:
    """An engine with two rows on a clock that the test drives."""
    return Engine(MODEL, memory, budget, **{"rows": 2, "clock": SimulatedClock(), "quantum": 1, **options})


def alone(of: Engine) -> Session:
    """A new session with the engine's memory and nothing else around it."""
    return Session(of.model, of.method, of.budget, chunk=of.chunk, path="eager")


def assert_equals(session: EngineSession, expected: Session) -> None:
    """The same tokens in the same order, and the same logits within rounding."""
    core = session.core
    assert core.tokens == expected.tokens
    assert core.log.digest == expected.log.digest
    if expected.logits is not None:
        assert core.logits is not None
        scale = max(1.0, float(expected.logits.abs().max()))
        assert float((core.logits - expected.logits).abs().max()) <= 1e-4 * scale


def assert_whole(session: EngineSession) -> None:
    """Its memory is that of a session that has read its log from the start."""
    new = alone(session.engine)
    assert len(session.core.log.tail) == session.core.tokens
    new.ingest(list(session.core.log.tail))
    assert_equals(session, new)
    session.engine.check()


def continuation(session: EngineSession, length: int = 6) -> str:
    """What it would say next; the session stays as it is."""
    return session.ask(max_new=length, remember=False).text()
