"""How does llama.cpp get the same model? The shared random weights written as GGUF, with no vocabulary.

Runs in the environment of llama.cpp (numpy and gguf, no torch). GGUF's Llama rotates neighbouring pairs where
transformers rotates halves, so the rows of the query and key projections are permuted on the way.
"""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from bench.peers.weights import random_tensors
from bench.shapes import BUDGET, RMS_EPS, ROPE_THETA, Shape

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    """The GGUF name of a transformers tensor."""
    if name in TOP:
        return TOP[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def interleave_pairs(matrix: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows from (first halves, second halves) of each head to neighbouring pairs."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_model(shape: Shape, dtype: str, folder: Path) -> Path:
    """Write the model once (float16 or float32 matrices, float32 norms) and return its path."""
    path = folder / f"random-{shape.name}-{dtype}.gguf"
    if path.exists():
        return path
    half = dtype == "float16"
    part = path.with_suffix(f".{os.getpid()}.part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_context_length(BUDGET)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(RMS_EPS)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    for name, tensor in random_tensors(shape):
        if "q_proj" in name or "k_proj" in name:
            tensor = interleave_pairs(tensor, shape.heads if "q_proj" in name else shape.kv_heads)
        writer.add_tensor(gguf_name(name), tensor.astype(np.float16) if half and tensor.ndim == 2 else tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)
    return path
