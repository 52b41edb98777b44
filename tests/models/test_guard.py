"""The trained monitor: scores in any cut, stops that move with their settings, an answer that it ends."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import penstock
from penstock.core import SimulatedClock
from penstock.errors import InputError
from penstock.live import Live
from penstock.models.guard import WEIGHTS, Guard, logic
from penstock.models.load import load
from penstock.worlds.guard import answers, measure, seen, sources, stops
from penstock.worlds.library import heldout_text

FACTS = "Note: brave otter 483 is amber.\nNote: calm miller 12 is green.\n"


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard()


@pytest.fixture(scope="module")
def streams() -> tuple[torch.Tensor, torch.Tensor]:
    return answers(*sources(heldout=True), 60, random.Random(3))


def test_scores_token_by_token_are_those_of_the_whole(guard: Guard, streams: Any) -> None:
    ids, _ = streams
    whole = torch.sigmoid(guard.heads(seen(ids[:3])))
    for row, expected in zip(ids[:3].tolist(), whole):
        for cut in (1, 7, 96):
            guard.start()
            parts = [guard.tokens(row[at : at + cut]) for at in range(0, 96, cut)]
            found = torch.tensor([score for scores, _ in parts for score in scores])
            assert float((found - expected[:, 0]).abs().max()) < 1e-4
            assert abs(parts[-1][1] - float(expected[-1, 1])) < 1e-4


def test_text_in_any_pieces_scores_alike_and_half_words_say_nothing(guard: Guard) -> None:
    text = FACTS + "import os\n\ndef main(arguments):\n    return os.path.join(*arguments)\n"
    worst = []
    for cut in (1, 5, 200):
        guard.start()
        found = [guard.score(text[: at + cut], 0) for at in range(0, len(text), cut)]
        assert any(score is None for score in found) == (cut < 200)
        worst.append(found[-1] or next(score for score in reversed(found) if score is not None))
    assert worst[0] > 0.5


def test_stops_come_later_with_a_higher_bar_and_more_tokens(guard: Guard, streams: Any) -> None:
    rows = torch.sigmoid(guard.heads(seen(streams[0])))[..., 0].tolist()
    for row in rows:
        at = [stops(row, 0.5, need, need) for need in (1, 2, 3, 5)]
        bar = [stops(row, threshold) for threshold in (0.3, 0.5, 0.7, 0.9)]
        for found in (at, bar):
            known = [math.inf if stop is None else stop for stop in found]
            assert known == sorted(known)
    assert stops([0.1, 0.9, 0.1, 0.9, 0.1]) is None  # a token alone stops nothing


def test_the_logic_of_both_heads() -> None:
    assert logic(0.0, 0.3) == 0.0
    assert logic(0.7, 1.0) == pytest.approx(0.0)
    assert logic(0.7, 0.0) == pytest.approx(-math.log(0.3))


def test_what_is_shipped_is_good(guard: Guard) -> None:
    found = measure(guard.heads, 150)
    assert found["precision"] > 0.98
    assert found["recall"] > 0.98
    assert found["clean_stopped"] <= 2
    assert found["left_missed"] == 0
    assert WEIGHTS.stat().st_size < 16_384


def test_an_answer_that_leaves_its_subject_is_cut_and_one_that_does_not_is_not(guard: Guard) -> None:
    model: Any = load(None)
    ends = {}
    for name, text in (("facts", FACTS * 8), ("code", "".join(heldout_text(1500)))):
        session = penstock.open(model, "streaming-llm", 512, path="eager")
        session.feed(text)
        live = Live(session, monitor=guard, clock=SimulatedClock())
        live.ask(None, max_new=24)
        events = list(live.run())
        ends[name] = events[-1]
        assert session.tokens >= events[-1].facts["answer_tokens"]
    assert (ends["facts"].kind, ends["code"].kind, ends["code"].facts["why"]) == ("end", "cut", "monitor")
    assert ends["code"].facts["answer_tokens"] < 24


def test_one_for_other_embeddings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(load_file(WEIGHTS), path, metadata={"embeddings": "of another model"})
    with pytest.raises(InputError, match="for other embeddings"):
        Guard(path)
    path.write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be read"):
        Guard(path)
