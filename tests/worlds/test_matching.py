"""The match stage: nothing changes by lengthening but what heads read, and the right statement wins by matching."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from penstock.worlds import FactsWorld
from penstock.worlds.lengthen import lengthen
from penstock.worlds.matching import MatchConfig, asked, teach
from penstock.worlds.net import Net, NetConfig
from penstock.worlds.tokenizer import encode
from penstock.worlds.train import main
from penstock.worlds.views import Row, Rows

TINY = Path(__file__).parents[2] / "penstock" / "models" / "tiny"
SMALL = NetConfig(hidden_size=160, intermediate_size=32, num_hidden_layers=2)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    made = Rows(lambda text: encode(tokenizer, text), 193, FactsWorld(5, sentences=(0, 1)))
    rng = random.Random(0)
    return [made.lookalikes(rng) for _ in range(12)]


@pytest.fixture(scope="module")
def plain() -> Net:
    return Net(SMALL, torch.Generator().manual_seed(0))


def test_questions_are_paired_with_the_value_of_their_statement(rows: list[Row]) -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    pairs = [(row, at, right) for row in rows for at, right in asked(row)]
    assert len(pairs) > 12
    for row, at, right in pairs:
        key = tokenizer.decode(row.ids[at - 5 : at + 1])
        assert tokenizer.decode(row.ids[right - 6 : right + 2]) == f"{key}{tokenizer.decode([row.ids[at + 1]])}."
        assert right < at - 6


def test_new_heads_read_5_and_6_back_and_the_others_write_nothing(plain: Net, rows: list[Row]) -> None:
    tokens = torch.tensor([row.ids[:-1] for row in rows])
    wide = lengthen(plain, tokens)
    assert wide.config == replace(SMALL, num_attention_heads=12)
    shown: list[torch.Tensor] = []
    attention = wide.layer(0).self_attn
    attention.watch = lambda query, key: shown.append(query @ key.mT / SMALL.head_dim**0.5)
    with torch.no_grad():
        wide(tokens)
    attention.watch = None
    ahead = ~torch.ones(192, 192, dtype=torch.bool).tril()
    weights = shown[0].masked_fill(ahead, float("-inf")).softmax(-1)
    for head, back in ((5, 5), (2, 6)):
        assert float(weights[:, head].diagonal(-back, 1, 2)[:, 16:].mean()) > 0.8
    with torch.no_grad():  # without the two there is the old function
        for head in (2, 5):
            attention.o_proj.weight[:, head * 32 : (head + 1) * 32] = 0
        assert torch.allclose(wide(tokens), plain(tokens), atol=1e-4)


def test_teaching_finds_the_right_key_and_changes_one_layer(plain: Net, rows: list[Row]) -> None:
    wide = lengthen(plain, torch.tensor([row.ids[:-1] for row in rows]))
    before = {name: weight.clone() for name, weight in wide.state_dict().items()}
    seen: list[float] = []
    text = torch.randint(2, 4096, (4, 64), generator=torch.Generator().manual_seed(1))
    teach(wide, rows, text, MatchConfig(steps=48, rows=2, text_rows=1), lambda step, contrast, _: seen.append(contrast))
    assert sum(seen[-5:]) < 0.5 * sum(seen[:5])
    changed = {name for name, weight in wide.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {f"model.layers.1.self_attn.{kind}_proj.weight" for kind in "qk"}


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["match", "--model", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "model.safetensors" in capsys.readouterr().err
    assert main(["match", "--model", str(TINY), "--out", str(tmp_path / "out"), "--steps", "0"]) == 2
    assert not (tmp_path / "out").exists()
