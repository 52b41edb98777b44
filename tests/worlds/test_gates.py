"""Training of gates: what a gate mixes, what it is trained towards, and the file that methods read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from tokenizers import Tokenizer
from torch import Tensor

from penstock.worlds.evaluate import load_net
from penstock.worlds.gates import Gated, GatesConfig, contexts, kept, learning_rate, train
from penstock.worlds.net import Net, NetConfig, window_view
from penstock.worlds.tokenizer import BOS_ID

TINY = Path(__file__).parents[2] / "penstock" / "models" / "tiny"


@pytest.fixture(scope="module")
def net() -> Net:
    config = NetConfig(128, 80, 96, 3, 4, 2, 16, 96)
    return Net(config, torch.Generator().manual_seed(0))


def tokens(length: int = 40) -> Tensor:
    return torch.randint(0, 128, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_gates_of_one_are_the_model_itself(net: Net) -> None:
    gated = Gated(net, 2, 6)
    expected = net(tokens())[:, -1]
    assert torch.allclose(gated.logits(tokens(), None), expected, atol=1e-5)
    assert torch.allclose(gated.logits(tokens(), torch.ones(3, 2)), expected, atol=1e-5)
    assert torch.allclose(gated.logits(tokens(), torch.ones(3, 1)), expected, atol=1e-5)


@torch.no_grad()
def test_gates_of_zero_see_sinks_and_window(net: Net) -> None:
    """At their own positions, as the paper masks them."""
    view = window_view(40, 2, 6)._replace(query_pos=torch.arange(40), key_pos=torch.arange(40))
    got = Gated(net, 2, 6).logits(tokens(), torch.zeros(3, 2))
    assert torch.allclose(got, net(tokens(), view)[:, -1], atol=1e-5)
    assert not torch.allclose(got, net(tokens())[:, -1], atol=1e-3)


@torch.no_grad()
def test_a_gate_is_for_all_query_heads_of_its_key_value_head(net: Net) -> None:
    gated = Gated(net, 2, 6)
    layer, x = net.model.layers[0].self_attn, torch.randn(1, 30, 80, generator=torch.Generator().manual_seed(2))
    from penstock.worlds.net import Rotations, rotary

    at, seen = Rotations(rotary(torch.arange(30), net.config)), gated.visible(30)
    full, none = (gated._attend(layer, x, at, torch.full((2,), value), seen) for value in (1.0, 0.0))
    one, other = (gated._attend(layer, x, at, torch.tensor(pair), seen) for pair in ([1.0, 0.0], [0.0, 1.0]))
    half = gated._attend(layer, x, at, torch.tensor([0.5, 0.5]), seen)
    assert torch.allclose(one + other, full + none, atol=1e-5)  # attention is a sum over heads
    assert torch.allclose(half, (full + none) / 2, atol=1e-5)
    assert not torch.allclose(one, other, atol=1e-4)


def test_the_highest_share_is_kept() -> None:
    gates = torch.tensor([[0.1, 0.9], [0.5, 0.5]])
    assert kept(gates, 0.5).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert kept(gates, 1.0).sum() == 4


def test_the_rate_goes_up_and_down() -> None:
    rates = [learning_rate(GatesConfig(steps=100, lr=1.0), step) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[19:81] == [1.0] * 62
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.slow
def test_the_copying_layer_keeps_its_gates() -> None:
    """A dozen steps on the shipped model: the gates of layer 1 stay, the others fall."""
    net, tokenizer = load_net(TINY)
    gates = []
    for steps in (12, 2, 2):
        with Progress(disable=True) as bar:
            gates.append(train(Gated(net, 16, 48), tokenizer, GatesConfig(steps=steps, rows=1), True, bar))
    assert torch.equal(gates[1], gates[2])
    assert gates[0].max() <= 1.0
    assert gates[0][1].min() > gates[0][[0, 2, 3]].max()


def test_rows_know_where_answers_are_predicted() -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    config = GatesConfig(rows=3)
    rows, answers = contexts(tokenizer, 256, config, 4)
    assert rows.shape == answers.shape == (3, 256)
    assert rows[:, 0].tolist() == [BOS_ID] * 3
    found = answers.nonzero().tolist()
    assert len(found) > 6
    for row, at in found:
        text = tokenizer.decode(rows[row, : at + 1].tolist())
        question = text.rsplit("\nAsk: ", 1)[1]
        answer = tokenizer.decode(rows[row, at + 1 : at + 2].tolist())
        assert question.endswith(" is")
        assert f"Note: {question}{answer}." in text
    again, _ = contexts(tokenizer, 256, config, 4)
    assert torch.equal(rows, again)
    other, _ = contexts(tokenizer, 256, config, 5)
    assert not torch.equal(rows, other)


def test_the_shipped_file_is_of_the_shipped_model() -> None:
    found = json.loads((TINY / "gates.json").read_text())
    config = json.loads((TINY / "config.json").read_text())
    assert found["shape"] == {
        "layers": config["num_hidden_layers"], "query_heads": config["num_attention_heads"],
        "kv_heads": config["num_key_value_heads"], "width": config["head_dim"],
    }  # fmt: skip
    assert [len(row) for row in found["heads"]] == [4] * 4
    assert [len(row) for row in found["local"]] == [4] * 4
    assert len(found["layers"]) == 4
    recall = found["recall"]
    assert recall["half of the heads"] >= recall["dense"] - 0.02
    assert recall["the other half of the heads"] < 0.5
