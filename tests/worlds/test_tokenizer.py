from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from penstock.worlds import FactsWorld
from penstock.worlds.tokenizer import BOS_ID, EOS_ID, encode, train_tokenizer
from penstock.worlds.words import ADJECTIVES, ANSWERS, NOUNS

TINY = Path(__file__).parents[2] / "penstock" / "models" / "tiny"
TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))


@given(st.text(max_size=80))
@settings(max_examples=150, deadline=None)
def test_any_text_round_trips(text: str) -> None:
    ids = encode(TOKENIZER, text)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_every_word_of_the_world_is_one_token() -> None:
    assert all(len(encode(TOKENIZER, f" {word}")) == 1 for word in (*ANSWERS, *ADJECTIVES, *NOUNS))


def test_digits_are_split_singly() -> None:
    assert len(encode(TOKENIZER, "2024")) == 4
    assert len(encode(TOKENIZER, " 483")) == 3


def test_passages_and_their_parts_may_be_encoded_piece_by_piece() -> None:
    passages = list(islice(FactsWorld(4), 60))
    whole = encode(TOKENIZER, "".join(passage.text for passage in passages))
    assert whole == [token for passage in passages for token in encode(TOKENIZER, passage.text)]
    assert whole == [token for passage in passages for part in passage.split() for token in encode(TOKENIZER, part)]


def test_the_answer_follows_the_question_without_changing_its_tokens() -> None:
    fact = FactsWorld(4).fact(11)
    joined = encode(TOKENIZER, fact.question + fact.answer)
    assert joined == encode(TOKENIZER, fact.question) + encode(TOKENIZER, fact.answer)


def test_transformers_adds_bos_once() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ids = tokenizer("import os").input_ids
    assert ids[0] == BOS_ID == tokenizer.bos_token_id
    assert BOS_ID not in ids[1:]
    assert tokenizer.eos_token_id == EOS_ID
    assert tokenizer("import os", add_special_tokens=False).input_ids == ids[1:]


@pytest.mark.slow
def test_training_gives_the_same_words_again() -> None:
    tokenizer = train_tokenizer(vocabulary=2048, facts=2000)
    assert tokenizer.get_vocab_size() == 2048
    assert len(encode(tokenizer, " amber")) == 1
