"""A transformers model's weights, copied into the native step's tiles.

Which models fit is found by looking, not by name: the modules of a Llama block, called what transformers calls them,
and nothing beside them.  What looking cannot see (a multiplier in some forward) is caught by comparing logits with the
model's own (models/native.py: verify).
"""

from __future__ import annotations

import ctypes
import math
import weakref
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from penstock.kernels import library as lib
from penstock.memory import Geometry

KINDS = {torch.float32: lib.FLOAT32, torch.bfloat16: lib.BFLOAT16}
_BLOCK = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "rotary_emb"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_SILU = ("SiLU", "SiLUActivation")


class Unfit(Exception):
    """Why a model has no native step, as a phrase."""


def obstacle(hf: nn.Module, geometry: Geometry) -> str | None:
    """Why this model cannot run natively, or None."""
    if lib.library() is None:
        return lib.ABSENT
    if geometry.device.type != "cpu":
        return "the model is not on the CPU"
    if geometry.dtype not in KINDS:
        return f"the native step knows no {str(geometry.dtype).removeprefix('torch.')}"
    try:
        _check(hf, geometry)
    except Unfit as reason:
        return str(reason)
    return None


def _check(hf: nn.Module, geometry: Geometry) -> None:
    body: Any = getattr(hf, "model", None)
    layers = getattr(body, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not all(hasattr(body, name) for name in ("embed_tokens", "norm")):
        raise Unfit("the model is not a stack of Llama blocks")
    if not isinstance(getattr(hf, "lm_head", None), nn.Linear) or len(layers) != len(geometry.layers):
        raise Unfit("the model is not a stack of Llama blocks with a head")
    if type(body.embed_tokens) is not nn.Embedding:
        raise Unfit("the model has an embedding of its own kind")
    for layer, about in zip(layers, geometry.layers):
        _check_layer(layer)
        rotary = about.encoding
        if getattr(rotary, "inv_freq", None) is None or rotary.axis is not None:  # type: ignore[union-attr]
            raise Unfit("a layer has no plain rotary embedding")
        if about.key_width != about.value_width or about.key_width % 16 or about.key_width > 256:
            raise Unfit("the heads are not of a multiple of 16 channels, at most 256")
    blocks: list[Any] = list(layers)
    first, mlp = geometry.layers[0], blocks[0].mlp
    same = {(a.query_heads, a.kv_heads, a.key_width) for a in geometry.layers}
    if len(same) > 1 or len({m.mlp.gate_proj.out_features for m in blocks}) > 1:
        raise Unfit("layers differ in size")
    widths = (body.embed_tokens.embedding_dim, mlp.gate_proj.out_features, first.query_heads * first.key_width)
    if any(width % 4 for width in widths):
        raise Unfit("a width is not a multiple of 4")
    parameters = list(hf.parameters())
    if any(p.dtype != geometry.dtype or p.device.type != "cpu" for p in parameters):
        raise Unfit("the weights are not all of one kind")
    if any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules()):
        raise Unfit("the model has hooks")


def _check_layer(layer: Any) -> None:
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if {name for name, _ in layer.named_children()} != _BLOCK or attention is None or mlp is None:
        raise Unfit("the layers are not Llama blocks")
    inner = {name for name, _ in attention.named_children()}
    if not inner <= _ATTENTION or not _ATTENTION - {"q_norm", "k_norm", "rotary_emb"} <= inner:
        raise Unfit("the attention is not that of a Llama block")
    if {name for name, _ in mlp.named_children()} != _MLP or type(mlp.act_fn).__name__ not in _SILU:
        raise Unfit("the feed-forward part is not that of a Llama block")
    linear = [getattr(attention, n) for n in ("q_proj", "k_proj", "v_proj", "o_proj")]
    linear += [getattr(mlp, n) for n in ("gate_proj", "up_proj", "down_proj")]
    if any(type(m) is not nn.Linear for m in linear):
        raise Unfit("a projection is not a plain matrix")


class Weights:
    """The tiles of one model, in `kind` (a pk_kind), made once."""

    def __init__(self, hf: nn.Module, geometry: Geometry, kind: int) -> None:
        self._lib = lib.library()
        body, head = _parts(hf)
        first, attention = geometry.layers[0], body.layers[0].self_attn
        weights = sum(p.numel() for p in hf.parameters()) * (4, 2, 1)[kind]
        if psutil.virtual_memory().available < 1.2 * weights:
            raise Unfit("there is no room for a second copy of the weights")
        shape = lib.Shape(
            hidden=body.embed_tokens.embedding_dim, layers=len(body.layers), heads=first.query_heads,
            kv_heads=first.kv_heads, width=first.key_width, intermediate=body.layers[0].mlp.gate_proj.out_features,
            vocabulary=head.out_features, weights=kind, stored=KINDS[geometry.dtype],
            eps=_eps(body.norm), eps_heads=_eps(getattr(attention, "q_norm", body.norm)),
            scale=getattr(attention, "scaling", None) or first.key_width**-0.5, factor=_factor(body, geometry.dtype),
        )  # fmt: skip
        self.handle = self._lib.pk_model_new(ctypes.byref(shape))
        if not self.handle:
            raise Unfit("there is no memory for the weights")
        self._end = weakref.finalize(self, self._lib.pk_model_free, self.handle)
        self._keep: list[Tensor] = []
        for i, layer in enumerate(body.layers):
            own, mlp = layer.self_attn, layer.mlp
            self._norm(i, lib.NORM_IN, layer.input_layernorm)
            self._norm(i, lib.NORM_MLP, layer.post_attention_layernorm)
            if hasattr(own, "q_norm"):
                self._norm(i, lib.NORM_QUERY, own.q_norm)
                self._norm(i, lib.NORM_KEY, own.k_norm)
            self._matrix(i, lib.QKV, own.q_proj, own.k_proj, own.v_proj)
            self._matrix(i, lib.OUT, own.o_proj)
            self._matrix(i, lib.GATE_UP, mlp.gate_proj, mlp.up_proj)
            self._matrix(i, lib.DOWN, mlp.down_proj)
        self._norm(0, lib.NORM_LAST, body.norm)
        self._matrix(0, lib.HEAD, head)
        self._embedding = body.embed_tokens.weight.detach().contiguous()
        self._lib.pk_model_embedding(self.handle, self._embedding.data_ptr())
        self._keep.clear()
        self.verdict: str | None = None  # of comparing logits; empty when they agree
        self.work = weights  # bytes that a step reads, about
        self.hidden, self.scale = shape.hidden, float(shape.scale)

    @property
    def nbytes(self) -> int:
        """Bytes of the tiles and of the room for a step."""
        return int(self._lib.pk_model_bytes(self.handle))

    def threads(self, count: int) -> int:
        """For a step of `count` tokens, no more than there is work for: a small model's step is over before another
        thread wakes."""
        return max(1, min(torch.get_num_threads(), count * self.work >> 20))

    def _floats(self, tensor: Tensor) -> int:
        self._keep.append(tensor.detach().float().contiguous())
        return self._keep[-1].data_ptr()

    def _norm(self, layer: int, which: int, module: Any) -> None:
        if not self._lib.pk_model_norm(self.handle, layer, which, self._floats(module.weight), module.weight.numel()):
            raise Unfit("there is no memory for the weights")

    def _matrix(self, layer: int, which: int, *modules: Any) -> None:
        sources = (lib.Source * len(modules))()
        for source, module in zip(sources, modules):
            weight = module.weight.detach().contiguous()
            self._keep.append(weight)
            source.data, source.rows, source.kind = weight.data_ptr(), weight.shape[0], KINDS[weight.dtype]
            source.bias = None if module.bias is None else self._floats(module.bias)
        columns = modules[0].in_features
        if not self._lib.pk_model_matrix(self.handle, layer, which, columns, sources, len(modules)):
            raise Unfit("there is no memory for the weights")


def _parts(hf: Any) -> tuple[Any, Any]:
    """The stack of blocks and the head."""
    return hf.model, hf.lm_head


def _eps(norm: Any) -> float:
    for name in ("variance_epsilon", "eps"):
        if isinstance(value := getattr(norm, name, None), float):
            return value
    raise Unfit("a norm tells no epsilon")


def _factor(body: Any, dtype: torch.dtype) -> float:
    """What the model's own rotary embedding multiplies with at position 0 (scaled variants do)."""
    embedding = getattr(body, "rotary_emb", None)
    if embedding is None:
        return 1.0
    with torch.no_grad():
        cos, _ = embedding(torch.zeros(1, 1, 1, dtype=dtype), torch.zeros(1, 1, dtype=torch.int64))
    factor = float(cos.flatten()[0])
    if not math.isfinite(factor):
        raise Unfit("the rotary embedding has no factor at position 0")
    return factor


def stamp(hf: nn.Module) -> tuple[Any, ...]:
    """Changes when a weight is replaced or written to."""
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in hf.parameters())
