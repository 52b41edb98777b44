"""StreamingLLM as its paper has it, in float64 and with lists: the reference that is not ours.

Keys are cached raw.  Each new token is appended, the entry behind the sinks leaves when there are too many, then all
keys and the query are rotated to their rank in the cache, 0..n-1.  A Llama written out over the weights of a
transformers model; nothing of penstock is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class CacheRank:
    """A Llama that reads a stream token by token with `budget` cached entries, its own included."""

    def __init__(self, model: nn.Module, sinks: int, budget: int) -> None:
        self.model: Any = model.model
        self.head, self.config = model.lm_head.weight.double(), model.config
        self.sinks, self.budget = sinks, budget
        self.kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.model.layers]
        self.largest_position = 0
        self.width = self.config.head_dim
        theta = self.config.rope_parameters["rope_theta"]
        self.frequencies = theta ** -(torch.arange(0, self.width, 2).double() / self.width)

    @torch.no_grad()
    def read(self, tokens: Tensor) -> Tensor:
        """Logits [N, V] float64."""
        return torch.stack([self._read_one(int(token)) for token in tokens])

    def _read_one(self, token: int) -> Tensor:
        x = self.model.embed_tokens.weight[token].double()
        for layer, kept in zip(self.model.layers, self.kept):
            x = x + self._attend(layer.self_attn, self._norm(layer.input_layernorm, x), kept)
            y, mlp = self._norm(layer.post_attention_layernorm, x), layer.mlp
            gate = nn.functional.silu(mlp.gate_proj.weight.double() @ y)
            x = x + mlp.down_proj.weight.double() @ (gate * (mlp.up_proj.weight.double() @ y))
        return self.head @ self._norm(self.model.norm, x)

    def _attend(self, attention: Any, x: Tensor, kept: list[tuple[Tensor, Tensor]]) -> Tensor:
        query, key, value = (
            (getattr(attention, f"{name}_proj").weight.double() @ x).view(-1, self.width) for name in "qkv"
        )  # [H, D]
        kept.append((key, value))
        if len(kept) > self.budget:
            del kept[self.sinks]
        ranks = torch.arange(len(kept))
        self.largest_position = max(self.largest_position, int(ranks[-1]))
        group = len(query) // len(key)
        keys = self._rotate(torch.stack([k for k, _ in kept], 1), ranks).repeat_interleave(group, 0)  # [Hq, n, D]
        values = torch.stack([v for _, v in kept], 1).repeat_interleave(group, 0)
        scores = keys @ self._rotate(query[:, None], ranks[-1:]).transpose(1, 2) * self.width**-0.5  # [Hq, n, 1]
        out = (scores.softmax(1) * values).sum(1)
        return attention.o_proj.weight.double() @ out.flatten()

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        turn = positions.double()[:, None] * self.frequencies
        a, b = x.chunk(2, -1)
        return torch.cat((a * turn.cos() - b * turn.sin(), b * turn.cos() + a * turn.sin()), -1)

    def _norm(self, norm: Any, x: Tensor) -> Tensor:
        return x * (x.square().mean() + norm.variance_epsilon).rsqrt() * norm.weight.double()
