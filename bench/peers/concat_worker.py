"""What does the scheme of the StreamingLLM reference code cost? Concatenate, re-rotate everything, evict by slicing.

Our faithful re-implementation for current transformers of what mit-han-lab/streaming-llm does in
`pos_shift/modify_llama.py` and `kv_cache.py` (read there; written anew): keys are cached before the rotation; each step
concatenates the new key and value, rotates all cached keys at their rank in the cache, repeats key-value heads, and
multiplies, with the softmax in float32; before each step `evict_for_space` slices and concatenates every layer.
The query sees sinks + window entries, itself included. The option `attention=sdpa` swaps only the attention product for
torch's fused one, which the reference does not use.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaAttention

from bench.peers.llama_torch import Tokens, build_model, cache_bytes, fill_cache, versions
from bench.peers.protocol import Peer, Setup, Timing, serve, timed
from bench.shapes import BUDGET, ROPE_THETA, SINKS, WINDOW


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def repeat_heads(x: torch.Tensor, times: int) -> torch.Tensor:
    """[B, Hkv, T, D] to [B, Hkv * times, T, D]."""
    if times == 1:
        return x
    batch, heads, length, width = x.shape
    return x[:, :, None].expand(batch, heads, times, length, width).reshape(batch, heads * times, length, width)


def rotary_tables(length: int, head_dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every rank, [length, D], made once as the reference's rotary module does."""
    frequencies = 1.0 / ROPE_THETA ** (torch.arange(0, head_dim, 2).double() / head_dim)
    angles = torch.outer(torch.arange(length).double(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def concat_attention(
    self: LlamaAttention,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    past_key_values: DynamicCache | None = None,
    position_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention forward of the scheme; bound to each attention module in place of its own."""
    batch, count, _ = hidden_states.shape
    heads = (batch, count, -1, self.head_dim)
    query = self.q_proj(hidden_states).view(heads).transpose(1, 2)
    key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
    value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
    cos, sin = self.rank_tables
    q_cos, q_sin = cos[position_ids].unsqueeze(1), sin[position_ids].unsqueeze(1)  # [1, 1, T, D]
    query = query * q_cos + rotate_half(query) * q_sin
    assert past_key_values is not None
    key, value = past_key_values.update(key, value, self.layer_idx)  # torch.cat, keys not rotated
    ranks = torch.arange(key.shape[2]).unsqueeze(0)
    k_cos, k_sin = cos[ranks].unsqueeze(1), sin[ranks].unsqueeze(1)
    key = key * k_cos + rotate_half(key) * k_sin
    key = repeat_heads(key, self.num_key_value_groups)
    value = repeat_heads(value, self.num_key_value_groups)
    if self.fused:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
    else:
        weights = torch.matmul(query, key.transpose(2, 3)) / self.head_dim**0.5
        if attention_mask is not None:
            weights = weights + attention_mask
        weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
        out = torch.matmul(weights, value)
    out = out.transpose(1, 2).contiguous().reshape(batch, count, -1)
    return self.o_proj(out), None


def evict_for_space(cache: DynamicCache, coming: int) -> None:
    """Make room for `coming` entries: sinks and the newest ones stay, by slicing and concatenation."""
    length = cache.get_seq_length()
    if length + coming <= BUDGET:
        return
    start = length - WINDOW + coming
    for layer in cache.layers:
        layer.keys = torch.cat([layer.keys[:, :, :SINKS], layer.keys[:, :, start:length]], dim=2)
        layer.values = torch.cat([layer.values[:, :, :SINKS], layer.values[:, :, start:length]], dim=2)


class Concat(Peer):
    """The cache object is transformers' own DynamicCache, used as a pair of growing tensors."""

    def setup(self, setup: Setup) -> None:
        self.setup_ = setup
        fused = setup.options.get("attention", "eager") == "sdpa"
        self.model = build_model(setup, attention="sdpa" if fused else "eager")
        tables = rotary_tables(BUDGET + 1, setup.shape.head_dim, getattr(torch, setup.dtype))
        for module in self.model.modules():
            if isinstance(module, LlamaAttention):
                module.rank_tables = tables
                module.fused = fused
                module.forward = types.MethodType(concat_attention, module)
        self.tokens = Tokens(setup.shape)
        self.cache = DynamicCache()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        evict_for_space(self.cache, ids.shape[1])
        return self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits

    def check(self, tokens: list[int]) -> list[float]:
        self.cache = DynamicCache()
        for token in tokens:
            logits = self.forward(torch.tensor([[token]]))
        return logits[0, -1].float().tolist()

    def seek(self, position: int) -> None:
        self.cache = DynamicCache()
        fill_cache(self.cache, self.setup_, min(position, BUDGET))

    def decode(self, steps: int, phase: float) -> Timing:
        return Timing([timed(self.forward, self.tokens.take(1)) for _ in range(steps)])

    def ingest(self, chunk: int, count: int) -> Timing:
        return Timing([timed(self.forward, self.tokens.take(chunk)) for _ in range(count)])

    def memory_bytes(self) -> int:
        return cache_bytes(self.cache)

    def describe(self) -> dict[str, Any]:
        return versions() | {"attention": self.setup_.options.get("attention", "eager")}


if __name__ == "__main__":
    serve(Concat())
