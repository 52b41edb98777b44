from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from penstock.worlds.checkpoint import export
from penstock.worlds.net import FarView, Net, NetConfig, clamped_view, window_view

CONFIG = NetConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8)


def _net() -> Net:
    return Net(CONFIG, torch.Generator().manual_seed(0))


def _tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 64, (rows, length), generator=torch.Generator().manual_seed(1))


def test_the_exported_folder_gives_the_same_logits_in_transformers(tmp_path: Path) -> None:
    net = _net()
    net.load_state_dict({key: value.bfloat16().float() for key, value in net.state_dict().items()})
    export(tmp_path, net)
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = _tokens(2, 33)
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits, net(tokens), atol=1e-5)


def test_clamping_beyond_the_row_changes_nothing() -> None:
    net, tokens = _net(), _tokens(3, 29)
    with torch.no_grad():
        assert torch.allclose(net(tokens), net(tokens, clamped_view(29, torch.tensor([29, 30, 500]))), atol=1e-5)
        assert not torch.allclose(net(tokens), net(tokens, clamped_view(29, torch.tensor([4, 4, 4]))), atol=1e-5)


def test_one_layer_with_sinks_and_window_equals_the_short_sequence() -> None:
    """With one layer keys depend on their own token alone, so the stream equals a dense pass over what is kept."""
    config = NetConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, head_dim=8)
    net, tokens = Net(config, torch.Generator().manual_seed(0)), _tokens(1, 40)
    view = window_view(40, 3, 9)
    kept = torch.cat([tokens[:, :3], tokens[:, -9:]], dim=1)
    with torch.no_grad():
        assert torch.allclose(net(tokens, view)[:, -1], net(kept)[:, -1], atol=1e-5)


def test_views_of_rows_may_differ() -> None:
    net, tokens = _net(), _tokens(2, 17)
    both = clamped_view(17, torch.tensor([3, 17]))
    with torch.no_grad():
        rows = [net(tokens[i : i + 1], FarView(*(part[i : i + 1] for part in both))) for i in (0, 1)]
        assert torch.allclose(net(tokens, both), torch.cat(rows), atol=1e-5)
        assert torch.allclose(rows[1], net(tokens[1:]), atol=1e-5)
