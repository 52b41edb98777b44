"""How do the torch contestants get the same model? A random LlamaForCausalLM with the shared weights."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights

from bench.peers.protocol import Setup
from bench.peers.weights import random_tensors, token_stream
from bench.shapes import RMS_EPS, ROPE_THETA, Shape

LONGEST = 131_072


def llama_config(shape: Shape, attention: str = "sdpa") -> LlamaConfig:
    """The transformers configuration of a shape."""
    return LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=LONGEST,
        rms_norm_eps=RMS_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        attn_implementation=attention,
    )


def build_model(setup: Setup, attention: str = "sdpa") -> LlamaForCausalLM:
    """A model in evaluation mode with the shared random weights, and the thread count set."""
    torch.set_num_threads(setup.threads)
    torch.set_grad_enabled(False)
    dtype: torch.dtype = getattr(torch, setup.dtype)
    with no_init_weights():
        model = LlamaForCausalLM(llama_config(setup.shape, attention))
    state = {name: torch.from_numpy(array).to(dtype) for name, array in random_tensors(setup.shape)}
    if setup.shape.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model.eval()


def fill_cache(cache: DynamicCache, setup: Setup, entries: int) -> None:
    """Put random keys and values of `entries` positions into every layer. The cost of a step does not depend on
    what they contain, so a far position is reached without reading the tokens before it."""
    shape = setup.shape
    generator = torch.Generator().manual_seed(entries)
    dtype: torch.dtype = getattr(torch, setup.dtype)
    for layer in range(shape.layers):
        size = (1, shape.kv_heads, entries, shape.head_dim)
        cache.update(
            torch.randn(size, generator=generator).to(dtype), torch.randn(size, generator=generator).to(dtype), layer
        )


def cache_bytes(cache: DynamicCache | None) -> int:
    """Bytes of the keys and values that a cache holds."""
    if cache is None:
        return 0
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values) if tensor is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Tokens:
    """An endless row of token identifiers, repeated from a fixed random one."""

    def __init__(self, shape: Shape) -> None:
        self._ids = torch.tensor(token_stream(shape, 8192), dtype=torch.long)
        self._next = 0

    def take(self, count: int) -> torch.Tensor:
        """The next `count` identifiers, [1, count]."""
        if self._next + count > len(self._ids):
            self._next = 0
        self._next += count
        return self._ids[None, self._next - count : self._next]


def versions() -> dict[str, Any]:
    """What this process runs on."""
    return {"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}
