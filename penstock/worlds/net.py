"""A lean Llama for training: the parameters of transformers' LlamaForCausalLM under the same names, nothing else.

It also computes attention in which far keys sit at positions of their own (`FarView`), which the library model cannot
do by itself; that is how training sees what bounded memories show a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penstock.worlds.circuit import prepare_copying
from penstock.worlds.tokenizer import BOS_ID, EOS_ID, VOCABULARY


@dataclass(frozen=True)
class NetConfig:
    """Shape of the model; the names are those of transformers' LlamaConfig."""

    vocab_size: int = VOCABULARY
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    max_position_embeddings: int = 512
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5

    def to_hf(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return asdict(self) | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
            "pad_token_id": EOS_ID,
            "use_cache": True,
            "dtype": "bfloat16",
        }


class FarView(NamedTuple):
    """Which keys a query reads, and at which positions; T queries read T keys.

    Visible keys that are not far are read at their distance in the sequence; far ones at `query_pos - key_pos`.
    """

    visible: Tensor  # [T, T] or [B, T, T] bool, query by key
    far: Tensor  # the same shape
    query_pos: Tensor  # [T] or [B, T], position of a query when it reads far keys
    key_pos: Tensor  # [T] or [B, T], position of a key when it is read as far


def clamped_view(length: int, local: Tensor) -> FarView:
    """Causal attention in which every distance of `local` or more counts as `local - 1`, as InfLLM reads its blocks.

    Args:
        length: T.
        local: [B] whole numbers of 1 or more, one per row.
    """
    index = torch.arange(length)
    distance = index[:, None] - index[None, :]
    far = distance >= local[:, None, None]
    query_pos = (local - 1)[:, None].expand(-1, length)
    return FarView((distance >= 0).expand_as(far), far, query_pos, torch.zeros_like(query_pos))


def window_view(length: int, sinks: int, window: int) -> FarView:
    """The first `sinks` and the last `window` tokens, contiguous positions 0 .. sinks + window - 1 (StreamingLLM)."""
    index = torch.arange(length)
    distance = index[:, None] - index[None, :]
    recent = (distance >= 0) & (distance < window)
    first = (index[None, :] < sinks) & (distance >= window)
    return FarView(recent | first, first, index.clamp(max=sinks + window - 1), index)


def rotary(positions: Tensor, config: NetConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., T, head_dim] of positions [..., T]."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = positions.float()[..., None] * config.rope_theta**-half
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, H, T, D] rotated by cosines and sines [T, D] or [B, 1, T, D]."""
    cos, sin = cos_sin
    a, b = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-b, a], dim=-1) * sin.to(x.dtype)


class Norm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (self.weight * y).to(x.dtype)


class Rotations(NamedTuple):
    near: tuple[Tensor, Tensor]
    far_query: tuple[Tensor, Tensor] | None = None
    far_key: tuple[Tensor, Tensor] | None = None
    visible: Tensor | None = None
    far: Tensor | None = None


class Attention(nn.Module):
    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, config.hidden_size, bias=False)
        self.watch: Callable[[Tensor, Tensor], None] | None = None  # shown rotated queries and keys, for diagnostics

    def forward(self, x: Tensor, at: Rotations) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, self.dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self.kv_heads, self.dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.dim).transpose(1, 2)
        groups = self.heads // self.kv_heads
        k = k.repeat_interleave(groups, dim=1)
        v = v.repeat_interleave(groups, dim=1)
        if self.watch is not None:
            self.watch(rotate(q, at.near), rotate(k, at.near))
        if at.far is None:
            out = F.scaled_dot_product_attention(rotate(q, at.near), rotate(k, at.near), v, is_causal=True)
        else:
            assert at.far_query is not None
            assert at.far_key is not None
            assert at.visible is not None
            near = rotate(q, at.near) @ rotate(k, at.near).transpose(-1, -2)
            away = rotate(q, at.far_query) @ rotate(k, at.far_key).transpose(-1, -2)
            scores = torch.where(at.far, away, near).float() / math.sqrt(self.dim)
            out = scores.masked_fill(~at.visible, float("-inf")).softmax(-1).to(v.dtype) @ v
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, at: Rotations) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), at)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Trunk(nn.Module):
    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)


class Net(nn.Module):
    """The model; `forward` gives logits, `loss` a weighted cross entropy without storing more logits than needed."""

    def __init__(self, config: NetConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        shrink = 1 / math.sqrt(2 * config.num_hidden_layers)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                std = 0.04 if "embed" in name else 0.02
                std *= shrink if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(weight, std=std, generator=generator)
        if config.num_hidden_layers > 1:
            layers = [module for module in self.modules() if isinstance(module, Attention)]
            prepare_copying(
                self.model.embed_tokens,
                layers[0],
                layers[1],
                config.num_attention_heads,
                config.num_key_value_heads,
                config.rope_theta,
                generator,
            )

    def forward(self, tokens: Tensor, view: FarView | None = None) -> Tensor:
        """Logits [B, T, V] of tokens [B, T]; `view` None is plain causal attention."""
        near = rotary(torch.arange(tokens.shape[1]), self.config)
        at = Rotations(near)
        if view is not None:
            pairs = [
                rotary(pos if pos.dim() == 1 else pos[:, None], self.config) for pos in (view.query_pos, view.key_pos)
            ]
            visible, far = (m if m.dim() == 2 else m[:, None] for m in (view.visible, view.far))
            at = Rotations(near, pairs[0], pairs[1], visible, far)
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, at)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def layer(self, index: int) -> Layer:
        """One of the layers."""
        layer = self.model.layers[index]
        assert isinstance(layer, Layer)
        return layer

    def losses(self, tokens: Tensor, view: FarView | None = None) -> Tensor:
        """Cross entropy in nats [B, T-1] of each next token of tokens [B, T]."""
        logits = self(tokens[:, :-1], view)
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(
            tokens.shape[0], -1
        )
