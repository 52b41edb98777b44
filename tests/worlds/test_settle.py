"""The settle stage: louder words, a step that teaches all weights, a folder that loads, the same bits again."""

from __future__ import annotations

import random
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer

from penstock.errors import UsageError
from penstock.worlds import FactsWorld, settle
from penstock.worlds.checkpoint import export
from penstock.worlds.evaluate import load_net
from penstock.worlds.lengthen import lengthen
from penstock.worlds.matching import asked, contrast, inside
from penstock.worlds.net import Net, NetConfig
from penstock.worlds.tokenizer import encode, save_tokenizer
from penstock.worlds.views import Row, Rows

TINY = Path(__file__).parents[2] / "penstock" / "models" / "tiny"
SMALL = NetConfig(hidden_size=160, intermediate_size=32, num_hidden_layers=2, max_position_embeddings=160)


class WithoutPositions(random.Random):
    """Keys are compared where they are, without a distance."""

    def choice(self, seq: Any) -> Any:
        return "raw"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


@pytest.fixture(scope="module")
def rows(tokenizer: Tokenizer) -> list[Row]:
    made = Rows(lambda text: encode(tokenizer, text), 161, FactsWorld(5, sentences=(0, 1)))
    rng = random.Random(0)
    return [made.lookalikes(rng) for _ in range(3)]


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer, rows: list[Row]) -> Path:
    plain = Net(SMALL, torch.Generator().manual_seed(0))
    export(tmp_path / "matched", lengthen(plain, torch.tensor([row.ids[:-1] for row in rows])))
    save_tokenizer(tokenizer, tmp_path / "matched")
    return tmp_path


def test_a_training_that_is_run_again_gives_the_same_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "library_tokens", lambda *_, **__: array("H", [7 + i % 900 for i in range(4000)]))
    seen: list[set[str]] = []
    nets = []
    for out in ("a", "b"):
        config = settle.SettleConfig(
            str(folder / "matched"), str(folder / out), steps=2, batch_tokens=160, rows=1, gain=4.0
        )
        settle.settle(config, Console(quiet=True), lambda _, report: seen.append(set(report)))
        nets.append(load_net(folder / out)[0].state_dict())
    assert seen == 2 * [{"text", "answers", "mean of 1"}, {"text", "answers", "mean of 2"}]
    before = load_net(folder / "matched")[0].state_dict()
    assert all(torch.equal(weight, nets[1][name]) for name, weight in nets[0].items())
    assert all(not torch.equal(weight, before[name]) for name, weight in nets[0].items() if weight.dim() == 2)


def test_only_the_heads_that_read_words_get_louder(folder: Path) -> None:
    net = load_net(folder / "matched")[0]
    out = net.layer(0).self_attn.o_proj.weight
    before = out.detach().clone().unflatten(1, (-1, 32))
    settle.louder(net, 8.0)
    factor = [8.0 if head in (2, 5) else 1.0 for head in range(before.shape[1])]
    assert torch.allclose(out.unflatten(1, (-1, 32)), before * torch.tensor(factor)[:, None])
    with pytest.raises(UsageError, match="`match` wrote"):
        settle.louder(Net(SMALL, torch.Generator().manual_seed(0)), 8.0)


@pytest.mark.parametrize("n", [2, 4])
def test_the_mean_of_neighbours_is_looked_up_where_it_stands(folder: Path, rows: list[Row], n: int) -> None:
    """Against scores by hand."""
    net = load_net(folder / "matched")[0]
    held = inside(net, torch.tensor([row.ids[:-1] for row in rows]))
    pairs = [asked(row) for row in rows]
    got = contrast(net, held, pairs, WithoutPositions(0), mean_of=n)
    attention, expected = net.layer(1).self_attn, []
    keys = torch.nn.functional.linear(held, attention.k_proj.weight).unflatten(-1, (-1, 32))
    for row, each in enumerate(pairs):
        for at, right in each:
            query = torch.nn.functional.linear(held[row, at], attention.q_proj.weight).view(-1, 32)
            scores = torch.stack([(keys[:, :, h // 3] @ query[h]) / 32**0.5 for h in range(12)])  # [12, N, T]
            means = scores.unflatten(-1, (-1, n)).mean(-1)
            means[:, row, (at + 1) // n :] = float("-inf")
            expected.append(-means.flatten(1).log_softmax(-1)[:, row * (160 // n) + right // n].mean())
    assert torch.allclose(got, torch.stack(expected).mean(), atol=1e-4)
