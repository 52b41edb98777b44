from __future__ import annotations

import torch

from penstock.worlds.net import Attention, Net, NetConfig

CONFIG = NetConfig(num_hidden_layers=2)
HALF = 64


def _attention(layer: int) -> torch.Tensor:
    """Attention [heads, T, T] of an untrained model on a segment of noise that comes twice."""
    net = Net(CONFIG, torch.Generator().manual_seed(0))
    segment = torch.randint(2, CONFIG.vocab_size, (1, HALF), generator=torch.Generator().manual_seed(3))
    found: list[torch.Tensor] = []

    def watch(query: torch.Tensor, key: torch.Tensor) -> None:
        scores = query @ key.transpose(-1, -2) / CONFIG.head_dim**0.5
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        found.append(scores.masked_fill(~mask, float("-inf")).softmax(-1)[0])

    [module for module in net.modules() if isinstance(module, Attention)][layer].watch = watch
    with torch.no_grad():
        net(torch.cat([segment, segment], dim=1))
    return found[0]


def test_the_first_heads_read_one_to_four_tokens_back() -> None:
    weights = _attention(0)
    for head in range(4):
        assert torch.diagonal(weights[head], -(head + 1))[8:].mean() > 0.9


def test_the_second_layer_finds_what_followed_last_time() -> None:
    weights = _attention(1)
    for head in range(CONFIG.num_attention_heads):
        assert torch.diagonal(weights[head], -(HALF - 1))[8:].mean() > 0.2  # evenly spread it would be about 0.01


def test_models_too_small_for_the_circuit_start_at_random() -> None:
    small = NetConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8)
    weight = Net(small, torch.Generator().manual_seed(0)).model.embed_tokens.weight
    assert weight[:, 0].std() > 0.005
