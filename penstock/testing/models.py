"""Tiny models of every tested family, with random weights.

The models have random weights of a size that makes attention uneven and logits of order one, so that a wrong window, a
wrong position or a lost entry shows.  They are the same for the same seed whatever the version of transformers, and no
global random state is touched.

    model = tiny_model("llama")               # float32, on the CPU, a few tens of thousands of weights
    tokens = tiny_tokens(200)                 # [200] int64
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig

from penstock.errors import UnknownName

VOCABULARY = 128  # tokens of every tiny model
SLIDING = 16  # the sliding window of families that have one, itself included
LEARNED = 256  # positions in the tables of families that learned them

_HIDDEN, _LAYERS, _HEADS, _KV_HEADS, _WIDTH = 64, 3, 4, 2, 16

_PLAIN: dict[str, Any] = {
    "hidden_size": _HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KV_HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
}
_OWN_WIDTH: dict[str, Any] = {**_PLAIN, "head_dim": _WIDTH}
_NO_GROUPS = {name: value for name, value in _PLAIN.items() if name != "num_key_value_heads"}
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
_HYBRID: dict[str, Any] = {**_OWN_WIDTH, "sliding_window": SLIDING, "layer_types": _ALTERNATING}
_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": _HIDDEN,
}


def _theta(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **settings}


def _rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {**_PLAIN, "rope_parameters": _theta(kind, **settings)}


def _axes(interleaved: bool = False) -> dict[str, Any]:
    """Three-axis rotary settings (time, height, width); text gives all axes the same position."""
    out = _theta("default", mrope_section=[2, 3, 3])
    return {**out, "mrope_interleaved": True} if interleaved else out


_FALCON: dict[str, Any] = {
    "hidden_size": _HIDDEN,
    "ffn_hidden_size": 96,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "alibi": False,
    "bias": False,
}

_LM = "AutoModelForCausalLM"

# name -> (transformers model type, auto class, settings)
_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", _LM, _PLAIN),
    "llama-linear": ("llama", _LM, _rope("linear", factor=4.0)),
    "llama-dynamic": ("llama", _LM, _rope("dynamic", factor=4.0)),
    "llama-yarn": (
        "llama",
        _LM,
        _rope("yarn", factor=4.0, original_max_position_embeddings=1024),
    ),
    "llama-longrope": (
        "llama",
        _LM,
        _rope(
            "longrope",
            factor=4.0,
            short_factor=[1.0 + 0.1 * i for i in range(_WIDTH // 2)],
            long_factor=[2.0 + i for i in range(_WIDTH // 2)],
            original_max_position_embeddings=1024,
        ),
    ),
    "llama-llama3": (
        "llama",
        _LM,
        _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=512),
    ),
    "mistral": ("mistral", _LM, {**_PLAIN, "sliding_window": SLIDING}),
    "qwen2": ("qwen2", _LM, _PLAIN),
    "qwen3": ("qwen3", _LM, _OWN_WIDTH),
    "gpt_neox": (
        "gpt_neox",
        _LM,
        {
            **_NO_GROUPS,
            "rope_parameters": _theta("default", partial_rotary_factor=0.25),
        },
    ),
    "gemma2": (
        "gemma2",
        _LM,
        {**_OWN_WIDTH, "sliding_window": SLIDING, "attn_logit_softcapping": 3.0},
    ),
    "gemma3": ("gemma3_text", _LM, _HYBRID),
    "phi3": (
        "phi3",
        _LM,
        {**_PLAIN, "rope_parameters": _theta("default", partial_rotary_factor=0.5)},
    ),
    "olmo2": ("olmo2", _LM, _PLAIN),
    "glm": ("glm", _LM, _OWN_WIDTH),
    "granite": (
        "granite",
        _LM,
        {**_PLAIN, "attention_multiplier": 0.3, "residual_multiplier": 0.8, "logits_scaling": 2.0},
    ),
    "gpt2": (
        "gpt2",
        _LM,
        {"n_embd": _HIDDEN, "n_layer": _LAYERS, "n_head": _HEADS, "vocab_size": VOCABULARY, "n_positions": LEARNED},
    ),
    "starcoder2": ("starcoder2", _LM, _PLAIN),
    "cohere2": ("cohere2", _LM, {**_HYBRID, "logit_scale": 1.0}),
    "gpt_oss": (
        "gpt_oss",
        _LM,
        {
            **_HYBRID,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 1024,
            },
        },
    ),
    "opt": (
        "opt",
        _LM,
        {
            "hidden_size": _HIDDEN,
            "ffn_dim": 96,
            "num_hidden_layers": _LAYERS,
            "num_attention_heads": _HEADS,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": LEARNED,
            "word_embed_proj_dim": _HIDDEN,
        },
    ),
    "qwen2_5_vl_text": ("qwen2_5_vl_text", "AutoModel", {**_PLAIN, "rope_parameters": _axes()}),
    "qwen3_vl_text": ("qwen3_vl_text", "AutoModel", {**_OWN_WIDTH, "rope_parameters": _axes(interleaved=True)}),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        "AutoModelForImageTextToText",
        {
            "text_config": {**_PLAIN, "rope_parameters": _axes()},
            "vision_config": {**_VISION, "fullatt_block_indexes": [0]},
        },
    ),
    "qwen3_vl": (
        "qwen3_vl",
        "AutoModelForImageTextToText",
        {
            "text_config": {**_OWN_WIDTH, "rope_parameters": _axes(interleaved=True)},
            "vision_config": {**_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        },
    ),
    # Falcon-7B, Falcon-40B and Falcon-RW in small.
    "falcon": ("falcon", _LM, {**_FALCON, "multi_query": True, "parallel_attn": True}),
    "falcon-new": (
        "falcon",
        _LM,
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": _KV_HEADS},
    ),
    "falcon-alibi": (
        "falcon",
        _LM,
        {**_FALCON, "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
    ),
    "mpt": (
        "mpt",
        _LM,
        {
            "d_model": 96,
            "n_heads": 6,  # not a power of two
            "n_layers": _LAYERS,
            "expansion_ratio": 2,
            "vocab_size": VOCABULARY,
            "max_seq_len": 4096,
            "attn_config": {"clip_qkv": 2.0, "softmax_scale": 0.3, "alibi": True, "alibi_bias_max": 8},
        },
    ),
}


def families() -> tuple[str, ...]:
    """Names that `tiny_model` knows."""
    return tuple(_FAMILIES)


def tiny_config(family: str, **settings: Any) -> Any:
    """The configuration of a tiny model; `settings` override its own (and its text part's).  Raises UnknownName."""
    if family not in _FAMILIES:
        raise UnknownName("family", family, _FAMILIES)
    kind, _, own = _FAMILIES[family]
    merged = dict(own)
    for name, value in settings.items():
        if "text_config" in merged:
            merged["text_config"] = {**merged["text_config"], name: value}
        else:
            merged[name] = value
    # Untied: a tied head would make logits as large as the hidden width allows, and the comparison coarser.
    common: dict[str, Any] = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
    if "text_config" in merged:
        merged["text_config"] = {**common, **merged["text_config"]}
    return AutoConfig.for_model(kind, **{**common, **merged})


def tiny_model(family: str, seed: int = 0, **settings: Any) -> nn.Module:
    """A tiny random transformers model, float32 on the CPU, in evaluation mode.  Raises UnknownName."""
    config = tiny_config(family, **settings)
    auto = getattr(transformers, _FAMILIES[family][1])
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = auto.from_config(config)
    randomise(model, seed)
    return model.eval()


_QUERY_OR_KEY = ("q_proj", "k_proj", "qkv", "query_key_value", "c_attn")


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Fill a model's weights, each from its own generator; a matrix keeps the size of its input.

    Scores then have a standard deviation of one to two, enough to tell keys apart and too little for one key to win.
    """
    done: set[int] = set()
    for name, weight in model.named_parameters():
        if id(weight) in done:
            continue
        done.add(id(weight))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
        noise = torch.randn(weight.shape, generator=generator)
        leaf = name.rsplit(".", 2)[-2:]
        if leaf[-1] == "sinks":
            weight.copy_(4.0 + noise)  # learned sinks: large enough to take a share from a hundred keys
        elif leaf[-1] == "bias":
            weight.copy_(0.1 * noise)  # not added: some layers start with biases drawn from the global generator
        elif weight.dim() < 2:
            weight.add_(0.1 * noise)
        elif "emb" in name or "wte" in name or "wpe" in name:
            weight.copy_(noise if weight.dim() == 2 else noise / math.sqrt(weight[0].numel()))
        else:
            fan_in = weight.shape[-2] if weight.dim() == 3 else weight.shape[-1]
            gain = (
                1.3 if any(part in name for part in ("q_proj", "k_proj", "qkv", "query_key_value", "c_attn")) else 1.0
            )
            weight.copy_(noise * gain / math.sqrt(fan_in))


def tiny_tokens(count: int, seed: int = 0) -> Tensor:
    """[count] int64 random tokens of the tiny vocabulary, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count,), generator=generator)
