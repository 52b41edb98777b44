"""A starting point from which looking up is learned in minutes: the two layers of a copying circuit, roughly laid out.

    layer 0   heads 0 to 3 read 1, 2, 3 and 4 tokens back and write what they find into subspaces of their own
    layer 1   a query (its token and the three before it) meets keys whose four predecessors are the same, and the
              token at that key is copied

From a plain random start the same circuit is found, but only after millions of tokens. Everything stays trainable.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_BACK = 4  # how many tokens back the first layer reads
_STRENGTH = 1.9  # of the distance heads: about 0.96 of the attention goes to the wanted token
_MATCH = 1.3  # of queries and keys in the second layer
_WRITE = 0.1  # size of what heads write, beside embeddings of standard deviation 0.04
_CONSTANT = 0.08  # dimension 0 of every embedding; through the tied output it shifts all logits alike


@torch.no_grad()
def prepare_copying(
    embedding: nn.Embedding,
    first: nn.Module,
    second: nn.Module,
    heads: int,
    kv_heads: int,
    rope_theta: float,
    generator: torch.Generator | None = None,
) -> None:
    """Write the circuit into two attention modules with `q_proj`, `k_proj`, `v_proj`, `o_proj` (Llama's names).

    Needs four heads of width 16 or more and a hidden width of five heads; smaller models are left as they are.
    """
    q0, k0, v0, o0 = _weights(first)
    q1, k1, v1, o1 = _weights(second)
    width, dim, groups = embedding.embedding_dim, k0.shape[0] // kv_heads, heads // kv_heads
    if heads < _BACK or dim < 16 or width < dim * (_BACK + 1):
        return

    def noise(rows: int, columns: int, std: float) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * std

    embedding.weight[:, 0] = _CONSTANT
    half = dim // 2
    angle = rope_theta ** (-torch.arange(half) / half)
    amplitude = torch.zeros(half)  # slow pairs say little about small distances
    amplitude[: min(6, half)] = torch.tensor([4.0, 2.0, 1.0, 1.0, 1.0, 1.0])[:half]
    scale = _STRENGTH * amplitude.sqrt().repeat(2)
    frame = torch.linalg.qr(noise(width, width, 1.0))[0]  # orthogonal subspaces do not disturb each other
    spaces = [frame[:, _rows(index, dim)] for index in range(width // dim)]
    read = spaces[_BACK].T
    for head in range(_BACK):
        rows, shared = _rows(head, dim), _rows(head // groups, dim)
        q0[rows, 0] = scale * torch.cat([(angle * (head + 1)).cos(), -(angle * (head + 1)).sin()])
        k0[shared, 0] = scale * torch.cat([torch.ones(half), torch.zeros(half)])
        v0[shared] = read
        o0[:, rows] = _WRITE * spaces[head]

    slow = torch.nonzero(angle < 1 / 400).flatten()  # pairs that turn little over a context: they match at any distance
    slow = torch.cat([slow, slow + half])
    for group in range(kv_heads):
        meet = [noise(len(slow), dim, _MATCH * dim**-0.5) for _ in range(_BACK)]
        k1[group * dim + slow] = sum((m @ space.T for m, space in zip(meet, spaces)), torch.zeros(len(slow), width))
        query = 2.0 * meet[0] @ read + sum(m @ space.T for m, space in zip(meet[1:], spaces))
        value = spaces[-1 - group].T if _BACK + group < len(spaces) else noise(dim, width, width**-0.5)
        v1[_rows(group, dim)] = value
        for head in range(group * groups, (group + 1) * groups):
            q1[head * dim + slow] = query
            o1[:, _rows(head, dim)] = 2 * _WRITE * value.T


def _rows(index: int, dim: int) -> slice:
    return slice(index * dim, (index + 1) * dim)


def _weights(attention: nn.Module) -> list[Tensor]:
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    found = [attention.get_parameter(f"{part}.weight") for part in parts]
    assert all(weight.dim() == 2 for weight in found), [weight.shape for weight in found]
    return list(found)
