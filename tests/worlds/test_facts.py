from __future__ import annotations

import random
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import InputError
from penstock.worlds import FactsWorld
from penstock.worlds.words import ADJECTIVES, ANSWERS, NOUNS


def test_the_statement_stands_where_the_passage_says() -> None:
    for passage in islice(FactsWorld(3), 500):
        assert passage.text.endswith("\n")
        assert not passage.text[0].isspace()
        assert "".join(passage.split()) == passage.text
        if passage.fact is None:
            assert passage.offset == -1
        else:
            assert passage.text[passage.offset :].startswith(passage.fact.statement)
            assert passage.text.count(passage.fact.key) == 1


def test_a_stream_restarts_at_any_index() -> None:
    whole = list(islice(FactsWorld(5), 40))
    assert list(islice(FactsWorld(5).passages(17), 23)) == whole[17:]
    assert list(islice(FactsWorld(6), 40)) != whole


@given(st.integers(0, 2**64), st.integers(0, 9_000_000))
@settings(max_examples=20, deadline=None)
def test_keys_do_not_repeat(seed: int, start: int) -> None:
    world = FactsWorld(seed)
    keys = {world.fact(index).key for index in range(start, start + 2000)}
    assert len(keys) == 2000
    assert world.num_keys > 5_000_000


def test_a_key_comes_again_only_after_all_others() -> None:
    world = FactsWorld(1)
    assert world.fact(7).key == world.fact(7 + world.num_keys).key


def test_answers_are_spread_evenly_and_chance_is_small() -> None:
    world = FactsWorld(2)
    assert world.chance <= 0.05
    counts = dict.fromkeys(world.answers, 0)
    for index in range(6400):
        counts[world.fact(index).answer] += 1
    assert 120 < min(counts.values()) <= max(counts.values()) < 290  # 200 expected, standard deviation 14


def test_density_is_the_share_of_passages_with_a_fact() -> None:
    for density in (0.0, 0.25, 1.0):
        share = sum(passage.fact is not None for passage in islice(FactsWorld(1, density=density), 1000)) / 1000
        assert abs(share - density) < 0.06


def test_a_filler_stands_between_the_facts() -> None:
    def filler(rng: random.Random) -> str:
        return f"  def f(): return {rng.randrange(10)}\n\n"

    passages = list(islice(FactsWorld(1, filler=filler, filler_share=1.0), 50))
    assert all("def f(): return" in passage.text for passage in passages)
    assert all(not passage.text[0].isspace() for passage in passages)


def test_no_word_is_in_two_lists() -> None:
    words = [*ANSWERS, *ADJECTIVES, *NOUNS]
    assert len(set(words)) == len(words)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InputError, match="from 0 to 1"):
        FactsWorld(0, density=2)
    with pytest.raises(InputError, match="such as"):
        FactsWorld(0, sentences=(3, 1))
