"""Streams: the same tokens every time, facts where they say they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.compare import Stream, facts_stream, text_stream
from penstock.errors import InputError
from penstock.io import open_text
from penstock.models.load import Model


def test_statements_stand_where_the_stream_says(model: Model, stream: Stream) -> None:
    assert len(stream.ids) == 2400
    for fact in stream.facts:
        said = model.tokenizer.decode(stream.ids[fact.start : fact.end]).strip()
        answer = model.tokenizer.decode(list(fact.answer))
        assert said == f"Note: {fact.key} is{answer}."
        assert model.tokenizer.decode(list(fact.question)) == f"\nAsk: {fact.key} is"
        assert len(fact.answer) == 1
    assert len(stream.facts) > 2400 / 64
    assert stream.ids[0] == model.tokenizer.bos_token_id


def test_a_stream_is_a_function_of_its_seed_and_a_longer_one_continues_it(model: Model, stream: Stream) -> None:
    again, longer, other = (facts_stream(model, n, seed) for n, seed in ((2400, 3), (3000, 3), (2400, 4)))
    assert again.digest == stream.digest != other.digest
    assert list(longer.ids[:2400]) == list(stream.ids)
    assert longer.facts[: len(stream.facts)] == stream.facts


def test_a_text_has_tokens_and_no_facts(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Call me Ishmael. " * 50)
    whole = model.tokenizer(path.read_text())["input_ids"]
    assert text_stream(model, open_text(str(path)), 10_000).ids == whole
    assert text_stream(model, open_text(str(path)), 33).ids == whole[:33]
    assert text_stream(model, open_text(str(path)), 33).facts == ()


def test_a_model_without_a_tokenizer_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        facts_stream(Model(model.attached, None, "bare", ""), 100)
