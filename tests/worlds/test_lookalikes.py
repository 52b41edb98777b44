"""Look-alike statements: confusable keys, each stated once, and rows that ask only for what they show."""

from __future__ import annotations

import random
import re
from itertools import combinations
from pathlib import Path

from tokenizers import Tokenizer

from penstock.worlds import FactsWorld
from penstock.worlds.lookalikes import lookalike, say
from penstock.worlds.tokenizer import encode
from penstock.worlds.views import Rows

TINY = Path(__file__).parents[2] / "penstock" / "models" / "tiny"
_STATED = re.compile(r"Note: (\w+ \w+ \d{3}) is (\w+)\.")


def _parts(key: str) -> tuple[str, ...]:
    first, second, number = key.split(" ")
    return first, second, *number


def test_a_lookalike_keeps_what_it_is_told_to() -> None:
    rng = random.Random(0)
    assert lookalike("brave otter 483", 1.0, rng) == "brave otter 483"
    kept = [_parts(lookalike("brave otter 483", 0.6, rng)) for _ in range(2000)]
    for index, part in enumerate(_parts("brave otter 483")):
        share = sum(parts[index] == part for parts in kept) / len(kept)
        assert 0.55 < share < 0.72, (index, share)  # some that were drawn anew are equal


def test_keys_come_once_and_share_every_combination_of_words_and_digits() -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    rng, shared, passage = random.Random(1), set(), 0
    for _ in range(40):
        said, passage = say(lambda text: encode(tokenizer, text), FactsWorld(3), passage, 30, rng)
        keys = [each.fact.key for each in said]
        assert len(set(keys)) == len(keys)
        for each in said:
            assert tokenizer.decode(each.statement).strip() == each.fact.statement
        for one, other in combinations(keys, 2):
            shared.add(tuple(a == b for a, b in zip(_parts(one), _parts(other))))
    assert len(shared) == 2**5 - 1  # all but equal keys


def test_rows_state_no_key_under_two_values() -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    rows, rng = Rows(lambda text: encode(tokenizer, text), 513, FactsWorld(5, sentences=(0, 2))), random.Random(2)
    asked = 0
    for _ in range(40):
        row = rows.lookalikes(rng)
        asked += row.weights.count(rows.answer_weight)
        stated: dict[str, str] = {}
        for key, value in _STATED.findall(tokenizer.decode(row.ids)):
            assert stated.setdefault(key, value) == value
    assert asked > 40 * 5
