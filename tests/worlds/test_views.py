from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from penstock.worlds import FactsWorld
from penstock.worlds.tokenizer import BOS_ID, encode
from penstock.worlds.views import Row, Rows

TINY = Path(__file__).parents[2] / "penstock" / "models" / "tiny"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


def _rows(tokenizer: Tokenizer, length: int, seed: int = 7) -> Rows:
    return Rows(lambda text: encode(tokenizer, text), length, FactsWorld(seed, density=0.8, sentences=(0, 3)))


@pytest.mark.parametrize("length", [65, 129, 513])
def test_every_kind_of_row_has_its_length(tokenizer: Tokenizer, length: int) -> None:
    rng, rows = random.Random(0), _rows(tokenizer, length)
    kinds: list[Callable[[], Row]] = [
        lambda: rows.stream(rng),
        lambda: rows.stream(rng, bos=False),
        lambda: rows.copy(rng),
        lambda: rows.text(rng, range(2, 2000)),
    ]
    if length > 100:
        kinds += [lambda: rows.scattered(rng), lambda: rows.scattered(rng, sinks=False)]
    kinds += [lambda: rows.lookalikes(rng), lambda: rows.lookalikes(rng, sinks=False)]
    for kind in kinds:
        for _ in range(20):
            row = kind()
            assert len(row.ids) == len(row.weights) == length


@pytest.mark.parametrize("kind", ["stream", "scattered", "lookalikes"])
def test_what_is_asked_was_stated_whole_earlier_in_the_row(tokenizer: Tokenizer, kind: str) -> None:
    rng, rows = random.Random(1), _rows(tokenizer, 257)
    asked = 0
    for _ in range(60):
        row = getattr(rows, kind)(rng)
        for at, weight in enumerate(row.weights):
            if weight == 1.0:
                before = tokenizer.decode(row.ids[:at], skip_special_tokens=False)
                answer = tokenizer.decode([row.ids[at]])
                stated, question = before.rsplit("\nAsk: ", 1)
                assert f"{question}{answer}." in stated
                asked += 1
    assert asked > 100


def test_copies_are_copies(tokenizer: Tokenizer) -> None:
    rng, rows = random.Random(2), _rows(tokenizer, 65)
    for _ in range(50):
        row = rows.copy(rng)
        first = row.weights.index(1.0)
        size = int(sum(row.weights)) + 1
        assert row.ids[first - 1 : first - 1 + size] == row.ids[1 : 1 + size]


def test_rows_without_a_start_have_no_bos(tokenizer: Tokenizer) -> None:
    rng, rows = random.Random(3), _rows(tokenizer, 129)
    assert rows.stream(rng).ids[0] == rows.scattered(rng).ids[0] == BOS_ID
    assert BOS_ID not in rows.stream(rng, bos=False).ids
    assert BOS_ID not in rows.scattered(rng, sinks=False).ids


def test_no_passage_is_used_twice(tokenizer: Tokenizer) -> None:
    rng, rows = random.Random(4), _rows(tokenizer, 129)
    rows.stream(rng)
    used = rows.next_passage
    rows.scattered(rng)
    assert rows.next_passage > used
