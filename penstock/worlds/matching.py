"""Teaches the second layer's queries and keys which statement a question means, and nothing else of the model.

    contrast   the query at the end of a question against the keys of all rows of a batch: the value of the asked
               statement must win, in every head, at any distance
    keep       on library text the attention stays what it was (Kullback-Leibler divergence, old from new)

What the layer reads does not change, so it is computed once; a step costs a small part of a training step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from penstock.worlds.net import Net, Rotations, rotary, rotate
from penstock.worlds.views import Row

_LAYER = 1
_QUESTION = 8  # tokens of a question before its last


@dataclass(frozen=True)
class MatchConfig:
    """How long and how hard to teach."""

    steps: int = 300
    lr: float = 3e-3  # peak; falls to zero
    rows: int = 8  # rows with questions per step
    text_rows: int = 4
    keep: float = 20.0  # weight of the attention on text beside the contrast
    seed: int = 0


def asked(row: Row) -> list[tuple[int, int]]:
    """(last token of a question, value token of the statement it means) of a row; keys are two words, three digits."""
    out = []
    ids = row.ids[:-1]
    for at in range(_QUESTION, len(ids)):
        if row.weights[at + 1] == 1.0:
            key = [*ids[at - 5 : at + 1], row.ids[at + 1]]
            found = [t for t in range(6, at - _QUESTION) if ids[t - 6 : t + 1] == key]
            if found:
                out.append((at, found[0]))
    return out


def teach(
    net: Net, rows: Sequence[Row], text: Tensor, config: MatchConfig, tick: Callable[[int, float, float], None]
) -> None:
    """Fit the queries and keys of the second layer in place.

    Args:
        net: what is read before that layer stays.
        rows: with questions at the answers' weights, equally long.
        text: [N, T] rows of library text.
        config: how.
        tick: told step, contrast and divergence in nats.
    """
    attention = net.layer(_LAYER).self_attn
    tokens = torch.tensor([row.ids[:-1] for row in rows])
    pairs = [asked(row) for row in rows]
    with torch.no_grad():
        facts, other = inside(net, tokens), inside(net, text)
    old_q, old_k = attention.q_proj.weight.detach().clone(), attention.k_proj.weight.detach().clone()
    query, key = attention.q_proj.weight, attention.k_proj.weight
    optimizer = torch.optim.Adam([query, key], lr=config.lr, betas=(0.9, 0.98))
    rng = random.Random(f"matching:{config.seed}")
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / 20) * (1 - step / config.steps)
        some = rng.sample(range(len(rows)), config.rows)
        more = rng.sample(range(len(text)), config.text_rows)
        loss = contrast(net, facts[some], [pairs[i] for i in some], rng)
        with torch.no_grad():
            before = _attention(net, other[more], old_q, old_k)
        after = _attention(net, other[more], query, key)
        divergence = (before.exp() * (before - after)).nan_to_num(0.0).sum(-1).mean()
        optimizer.zero_grad()
        (loss + config.keep * divergence).backward()
        torch.nn.utils.clip_grad_norm_([query, key], 1.0)
        optimizer.step()
        tick(step, float(loss.detach()), float(divergence.detach()))


def inside(net: Net, tokens: Tensor) -> Tensor:
    """[N, T, D]: what the layer's projections read."""
    at = Rotations(rotary(torch.arange(tokens.shape[1]), net.config))
    out = []
    for part in tokens.split(8):
        x = net.model.embed_tokens(part)
        for index in range(_LAYER):
            x = net.layer(index)(x, at)
        out.append(net.layer(_LAYER).input_layernorm(x))
    return torch.cat(out)


def _heads(inside: Tensor, weight: Tensor, dim: int) -> Tensor:
    """[N, H, T, dim]."""
    return F.linear(inside, weight).unflatten(-1, (-1, dim)).transpose(1, 2)


def contrast(
    net: Net, inside: Tensor, pairs: Sequence[Sequence[tuple[int, int]]], rng: random.Random, mean_of: int = 1
) -> Tensor:  # fmt: skip
    """Mean cross entropy, over questions and heads, of the right key among those of all rows.

    With `mean_of` n, of the mean of n neighbouring keys among such means.
    """
    config, attention = net.config, net.layer(_LAYER).self_attn
    dim, length = config.head_dim, inside.shape[1]
    groups = config.num_attention_heads // config.num_key_value_heads
    where = [(row, at, right) for row, each in enumerate(pairs) for at, right in each]
    row, at, right = (torch.tensor(column) for column in zip(*where))
    query = _heads(inside[row, at][:, None], attention.q_proj.weight, dim)[:, :, 0]  # [Q, Hq, d]
    key = _heads(inside, attention.k_proj.weight, dim)  # [N, H, T, d]
    frame = rng.choice(("stream", "stream", "far", "raw"))
    far = rng.choice((127, 255, 383, length - 1)) if frame == "far" else 0
    asking = at if frame == "stream" else torch.full_like(at, far)
    standing = torch.arange(length) if frame == "stream" else torch.zeros(length, dtype=torch.int64)
    query = rotate(query, tuple(part[:, None] for part in rotary(asking, config)))  # type: ignore[arg-type]
    key = rotate(key, rotary(standing, config)).repeat_interleave(groups, dim=1)
    scores = torch.einsum("qhd,nhtd->qhnt", query, key) / math.sqrt(dim)
    index = torch.arange(length)
    hidden = (torch.arange(len(inside)) == row[:, None])[:, None, :, None] & (index > at[:, None])[:, None, None]
    if mean_of > 1:
        scores = scores[..., : length // mean_of * mean_of].unflatten(-1, (-1, mean_of)).mean(-1)
        hidden = hidden[..., mean_of - 1 :: mean_of][..., : scores.shape[-1]]
        length, right = scores.shape[-1], (right // mean_of).clamp(max=scores.shape[-1] - 1)
    scores = scores.masked_fill(hidden, float("-inf")).flatten(2)
    target = (row * length + right)[:, None].expand(-1, scores.shape[1])
    return F.cross_entropy(scores.flatten(0, 1), target.flatten())


def _attention(net: Net, inside: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """[N, H, T, T]: logarithms of the attention of the heads that write something, -inf ahead."""
    config = net.config
    groups, length = config.num_attention_heads // config.num_key_value_heads, inside.shape[1]
    at = rotary(torch.arange(length), config)
    q = rotate(_heads(inside, query, config.head_dim), at)
    k = rotate(_heads(inside, key, config.head_dim), at).repeat_interleave(groups, dim=1)
    writes = net.layer(_LAYER).self_attn.o_proj.weight.unflatten(1, (-1, config.head_dim)).abs().amax((0, 2)) > 0
    scores = q[:, writes] @ k[:, writes].mT / math.sqrt(config.head_dim)
    return scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), float("-inf")).log_softmax(-1)
