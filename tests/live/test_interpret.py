"""A source in, a target out: what is written when, and what the memory then holds."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

import penstock
from penstock.errors import UsageError
from penstock.live import Interpreter
from penstock.models.load import load
from penstock.session import Session
from penstock.triggers.policies import Hold, LocalAgreement, Policy, WaitK, erasure

HEADER = "Note: brave otter 483 is amber.\nAsk: brave otter 483 is"
SOURCE = " amber. Note: calm miller 12 is green."


@pytest.fixture(scope="module")
def model() -> Any:
    return load(None, dtype="float32")


def opened(model: Any, memory: str = "group-positions") -> Session:
    session = penstock.open(model, memory, 256, path="eager")
    session.feed(HEADER)
    session.flush()
    return session


def run(session: Session, policy: Policy, pieces: int = 3, max_new: int = 6) -> tuple[Interpreter, list[str]]:
    """Everything read in so many pieces; what stood written after each."""
    interpreter, shown = Interpreter(session, policy, max_new), []
    step = -(-len(SOURCE) // pieces)
    for at in range(0, len(SOURCE), step):
        interpreter.read(SOURCE[at : at + step])
        shown.append(interpreter.text)
    interpreter.end()
    return interpreter, [*shown, interpreter.text]


def offline(model: Any, memory: str, max_new: int = 6) -> str:
    session = opened(model, memory)
    session.feed(SOURCE)
    session.flush()
    return "".join(session.reply(None, raw=True, max_new=max_new))


@pytest.mark.parametrize("memory", ["group-positions", "streaming-llm"])
@pytest.mark.parametrize("policy", [WaitK(99), LocalAgreement(99)])
def test_who_waits_for_all_writes_what_offline_decoding_writes(model: Any, memory: str, policy: Policy) -> None:
    found, shown = run(opened(model, memory), policy)
    assert shown[:-1] == [""] * (len(shown) - 1)
    assert found.text == offline(model, memory)
    assert set(found.delays) == {found.words_read}


@pytest.mark.parametrize("policy", [WaitK(2, 0.4), LocalAgreement(2), Hold(2)])
def test_nothing_is_written_early_or_taken_back_and_cuts_of_the_source_do_not_matter(
    model: Any, policy: Policy
) -> None:
    found, shown = run(opened(model), policy)
    for before, after in pairwise(shown):
        assert after.startswith(before)
    assert erasure([tuple(text) for text in shown if text]) == 0.0
    if isinstance(policy, WaitK):
        assert all(read >= min(policy.waits_for(i), found.words_read) for i, read in enumerate(found.delays, 1))
        assert found.delays[0] == 2
    again, _ = run(opened(model), policy, pieces=len(SOURCE))
    assert (again.text, again.delays) == (found.text, found.delays)


def test_the_memory_holds_the_written_tokens_less_one_and_the_source_as_if_nothing_were_written(model: Any) -> None:
    silent, session = opened(model), opened(model)
    interpreter = Interpreter(session, WaitK(2), 6)
    start = session.tokens
    for word in SOURCE.split(" ")[1:-1]:
        interpreter.read(f" {word}")
        silent.feed(f" {word}")
    interpreter.read(" ")  # the last word is whole now
    silent.flush()
    assert len(interpreter.tokens) > 2
    assert session.tokens - start == silent.tokens - start + len(interpreter.tokens) - 1
    silent.feed(" behind it.")
    session.feed(" behind it.")
    for one in (silent, session):
        one.flush()
        assert one.logits is not None
    assert float((session.logits - silent.logits).abs().max()) < 1e-4 * float(silent.logits.abs().max())  # type: ignore[operator, union-attr]


def test_the_end_is_the_end(model: Any) -> None:
    interpreter = Interpreter(opened(model), WaitK(1), 4)
    assert interpreter.read(" unfinish") == ""
    interpreter.end()
    assert interpreter.end() == ""
    with pytest.raises(UsageError, match="has ended"):
        interpreter.read("more")


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    import runpy
    from pathlib import Path

    main = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "interpret.py"))["main"]
    assert main(["--words", "4", "--policy", "wait-2"]) == 0
    assert "4 words read" in capsys.readouterr().out
    assert main(["--policy", "never"]) == 2
    assert "choose wait-5" in capsys.readouterr().err
