"""A copying circuit that looks further back, in a model that is already trained.

The outlined circuit (`penstock.worlds.circuit`) matches a token and the three before it.  In the facts world these are
" is" and the three digits of a key: statements with the same number and other words are one and the same to it.  Here
every key-value head gets another query head, and nothing is lost:

    layer 0   two of the new heads read 5 and 6 tokens back, by the keys of the heads that read 1 to 4 back, and write
              it where the residual varies least
    others    the new heads write nothing yet

Matching the longer keys is learned (`penstock.worlds.matching`).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from penstock.worlds.net import Layer, Net, Rotations, rotary

_BACK = ((5, 1), (6, 0))  # tokens back, and the key-value head that is read
_FAST = 6  # rotary pairs that tell small distances apart
_SHARP = 18.0  # nats of the wanted distance, summed over these pairs
_WRITE = 0.3  # size of what the new heads write, beside the residual


@torch.no_grad()
def lengthen(net: Net, rows: Tensor, seed: int = 0) -> Net:
    """A net with half as many query heads again, whose first layer also reads 5 and 6 tokens back.

    Args:
        net: trained from the outlined circuit.
        rows: [B, T] sample token ids to measure on.
        seed: of the new heads.
    """
    wide = _widened(net, torch.Generator().manual_seed(seed))
    _read_back(wide, wide.layer(0), wide.model.embed_tokens(rows))
    return wide


def _widened(net: Net, generator: torch.Generator) -> Net:
    """The same function with one more query head per key-value head."""
    old = net.config
    kv, dim, groups = old.num_key_value_heads, old.head_dim, old.num_attention_heads // old.num_key_value_heads
    wide = Net(replace(old, num_attention_heads=kv * (groups + 1)), generator)
    state = net.state_dict()
    for name, value in wide.state_dict().items():
        known = state[name]
        if name.endswith("q_proj.weight"):
            more = torch.randn(kv, dim, old.hidden_size, generator=generator) * 0.02
            known = torch.cat([known.view(kv, groups * dim, -1), more], dim=1).flatten(0, 1)
        elif name.endswith("o_proj.weight"):
            none = torch.zeros(old.hidden_size, kv, dim)
            known = torch.cat([known.view(-1, kv, groups * dim), none], dim=2).flatten(1, 2)
        value.copy_(known)
    return wide


def _read_back(net: Net, layer: Layer, embedded: Tensor) -> None:
    """Turn the last query heads of the first two groups into heads that read 6 and 5 tokens back."""
    attention, config = layer.self_attn, net.config
    dim, half = config.head_dim, config.head_dim // 2
    groups = config.num_attention_heads // config.num_key_value_heads
    vocabulary = layer.input_layernorm(net.model.embed_tokens.weight)
    constant = torch.linalg.lstsq(vocabulary, torch.ones(len(vocabulary), 1)).solution[:, 0]
    angle = config.rope_theta ** (-torch.arange(half) / half)
    quiet = _quiet_directions(net, layer, embedded, len(_BACK) * dim)
    size = float(embedded.norm(dim=-1).mean())
    for number, (back, group) in enumerate(_BACK):
        here, last = slice(group * dim, (group + 1) * dim), (group + 1) * groups - 1
        key = (vocabulary @ attention.k_proj.weight[here].T).mean(0)
        first, second = key[:half].clone(), key[half:].clone()
        first[_FAST:], second[_FAST:] = 0, 0
        sharp = _SHARP * math.sqrt(dim) / float((first**2 + second**2).sum())
        cos, sin = (angle * back).cos(), (angle * back).sin()
        query = torch.cat([cos * first + sin * second, cos * second - sin * first]) * sharp
        attention.q_proj.weight[last * dim : (last + 1) * dim] = torch.outer(query, constant)
        values = vocabulary @ attention.v_proj.weight[here].T
        write = _WRITE * size / float((values - values.mean(0)).norm(dim=-1).mean())
        attention.o_proj.weight[:, last * dim : (last + 1) * dim] = write * quiet[:, number * dim : (number + 1) * dim]


def _quiet_directions(net: Net, layer: Layer, embedded: Tensor, count: int) -> Tensor:
    """[D, count]: directions in which the layer's output varies least."""
    at = Rotations(rotary(torch.arange(embedded.shape[1]), net.config))
    out = layer(embedded, at).flatten(0, 1)
    _, vectors = torch.linalg.eigh((out.T @ out) / len(out))
    return vectors[:, :count]
