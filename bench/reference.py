"""What should streaming-llm compute? Its definition, written as plainly as possible, for one Llama, one row, float32.

Every layer keeps the keys before rotation, with their values, of the sinks and of the newest tokens, in the order of
the stream. For each token the key at rank r of the cache is rotated by r times the frequency, the query by its own
rank (the last one), with angles in float64 rounded once to float32. Nothing is shared with the package, and nothing
with transformers but the weights.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM


class CacheRankReference:
    """Token in, logits out; sinks and window as in the paper, the query itself included in the window."""

    def __init__(self, model: LlamaForCausalLM, sinks: int, window: int) -> None:
        config = model.config
        self.sinks, self.window = sinks, window
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = model.model.layers[0].self_attn.head_dim
        self.layers = config.num_hidden_layers
        self.eps = config.rms_norm_eps
        self.weights = {name: tensor.float() for name, tensor in model.state_dict().items()}
        theta = config.rope_parameters["rope_theta"]
        frequencies = theta ** (-torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim)
        angles = torch.outer(torch.arange(sinks + window, dtype=torch.float64), frequencies)
        self.cos = angles.cos().float()  # [rank, D / 2]
        self.sin = angles.sin().float()
        empty = torch.empty(self.kv_heads, 0, self.head_dim)
        self.keys = [empty] * self.layers  # [Hkv, T, D], not rotated
        self.values = [empty] * self.layers

    def norm(self, x: Tensor, name: str) -> Tensor:
        return self.weights[name] * (x * torch.rsqrt(x.pow(2).mean() + self.eps))

    def rotate(self, x: Tensor, first: int) -> Tensor:
        """Rotate the rows of [H, T, D] by the ranks first, first + 1, ..."""
        cos, sin = self.cos[first : first + x.shape[1]], self.sin[first : first + x.shape[1]]
        left, right = x.chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)

    def keep(self, kept: Tensor, new: Tensor) -> Tensor:
        """Append the newcomer; when there are too many, the oldest behind the sinks goes."""
        if kept.shape[1] == self.sinks + self.window:
            kept = torch.cat((kept[:, : self.sinks], kept[:, self.sinks + 1 :]), dim=1)
        return torch.cat((kept, new), dim=1)

    def attend(self, x: Tensor, layer: int) -> Tensor:
        weights, prefix = self.weights, f"model.layers.{layer}.self_attn."
        query = (weights[prefix + "q_proj.weight"] @ x).view(self.heads, 1, self.head_dim)
        key = (weights[prefix + "k_proj.weight"] @ x).view(self.kv_heads, 1, self.head_dim)
        value = (weights[prefix + "v_proj.weight"] @ x).view(self.kv_heads, 1, self.head_dim)
        keys = self.keys[layer] = self.keep(self.keys[layer], key)
        values = self.values[layer] = self.keep(self.values[layer], value)
        rank = keys.shape[1] - 1
        query = self.rotate(query, rank).view(self.kv_heads, -1, self.head_dim)  # heads of a group side by side
        scores = query @ self.rotate(keys, 0).transpose(1, 2) / math.sqrt(self.head_dim)
        out = scores.softmax(dim=-1) @ values  # [Hkv, group, D]
        return weights[prefix + "o_proj.weight"] @ out.reshape(-1)

    def feed_forward(self, x: Tensor, layer: int) -> Tensor:
        weights, prefix = self.weights, f"model.layers.{layer}.mlp."
        gated = F.silu(weights[prefix + "gate_proj.weight"] @ x) * (weights[prefix + "up_proj.weight"] @ x)
        return weights[prefix + "down_proj.weight"] @ gated

    @torch.no_grad()
    def step(self, token: int) -> Tensor:
        """The logits after one more token, [vocabulary]."""
        x = self.weights["model.embed_tokens.weight"][token]
        for layer in range(self.layers):
            x = x + self.attend(self.norm(x, f"model.layers.{layer}.input_layernorm.weight"), layer)
            x = x + self.feed_forward(self.norm(x, f"model.layers.{layer}.post_attention_layernorm.weight"), layer)
        return self.weights["lm_head.weight"] @ self.norm(x, "model.norm.weight")
