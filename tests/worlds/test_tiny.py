"""The shipped model is what the documentation says: a plain folder for transformers that answers what it can see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from penstock.worlds import probe
from penstock.worlds.evaluate import load_net, recall_by_place
from penstock.worlds.tokenizer import encode

TINY = Path(__file__).parents[2] / "penstock" / "models" / "tiny"


@pytest.fixture(scope="module")
def rows() -> probe.Probe:
    _, tokenizer = load_net(TINY)
    return probe.contiguous(lambda text: encode(tokenizer, text), context=512, num_rows=48, seed=2024)


def test_facts_in_view_are_answered(rows: probe.Probe) -> None:
    """48 questions; the measured recall is in docs/tiny-model.md, guessing gives 0.03."""
    found = recall_by_place(load_net(TINY)[0], rows)
    assert isinstance(found["recall"], float)
    assert found["recall"] >= 0.9


def test_transformers_gives_the_same_logits(rows: probe.Probe) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    with torch.no_grad():
        theirs, ours = model(rows.tokens[:2]).logits, load_net(TINY)[0](rows.tokens[:2])
    assert torch.allclose(theirs, ours, atol=1e-4)


def test_the_shape_is_what_the_rest_of_the_package_counts_on() -> None:
    config = AutoModelForCausalLM.from_pretrained(TINY).config
    assert config.model_type == "llama"
    assert config.num_key_value_heads >= 4
    assert config.head_dim == 32
    assert config.max_position_embeddings == 512
    assert (TINY / "model.safetensors").stat().st_size < 12_000_000
    assert AutoTokenizer.from_pretrained(TINY).vocab_size == config.vocab_size


def test_probes_put_the_asked_statement_where_they_say(rows: probe.Probe) -> None:
    _, tokenizer = load_net(TINY)

    def ids(text: str) -> list[int]:
        return encode(tokenizer, text)

    for made in (rows, probe.scattered(ids, context=512, num_rows=8, seed=5, window=128)):
        for row, answer, start in zip(made.tokens[:8].tolist(), made.answers, made.starts):
            question = tokenizer.decode(row).rsplit("\nAsk: ", 1)[1].removesuffix(" is")
            here = tokenizer.decode(row[start : start + 10])
            assert here.strip() == f"Note: {question} is{tokenizer.decode([answer])}."
