"""Which random weights do all contestants share? The same ones, drawn by numpy under the names of transformers.

Imports numpy only, so that an environment without torch can write them to GGUF. Equal weights make it possible to
check that contestants which claim the same function compute the same logits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bench.shapes import Shape

SEED = 20_240_229
STD = 0.02


def random_tensors(shape: Shape) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Every tensor of a Llama of this shape: norms are one, matrices normal with deviation 0.02."""
    rng = np.random.default_rng(SEED)

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(STD)

    def ones() -> npt.NDArray[np.float32]:
        return np.ones(shape.hidden, dtype=np.float32)

    kv_width = shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", matrix(shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "self_attn.q_proj.weight", matrix(shape.hidden, shape.hidden)
        yield prefix + "self_attn.k_proj.weight", matrix(kv_width, shape.hidden)
        yield prefix + "self_attn.v_proj.weight", matrix(kv_width, shape.hidden)
        yield prefix + "self_attn.o_proj.weight", matrix(shape.hidden, shape.hidden)
        yield prefix + "mlp.gate_proj.weight", matrix(shape.intermediate, shape.hidden)
        yield prefix + "mlp.up_proj.weight", matrix(shape.intermediate, shape.hidden)
        yield prefix + "mlp.down_proj.weight", matrix(shape.hidden, shape.intermediate)
        yield prefix + "input_layernorm.weight", ones()
        yield prefix + "post_attention_layernorm.weight", ones()
    yield "model.norm.weight", ones()
    if not shape.tied:
        yield "lm_head.weight", matrix(shape.vocabulary, shape.hidden)


def token_stream(shape: Shape, count: int, seed: int = 7) -> list[int]:
    """The random token identifiers that every contestant reads."""
    return [int(token) for token in np.random.default_rng(seed).integers(3, shape.vocabulary, count)]
