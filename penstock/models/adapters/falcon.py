"""Falcon (arXiv:2311.16867): its attention is written out in the layer and never asks transformers' interface.

Rotary models give raw keys like all others, and only the key-value heads that the layer really has are stored.  ALiBi
models (Falcon-RW) add the bias before the scaling, so the slopes carry the factor 1/sqrt(d).

The library multiplies bfloat16 slopes with bfloat16 positions, so its biases are rounded to 8 bits and its positions to
even numbers from 256 on.  Here the slopes are those and the product is exact, as the paper has it: a distance counts
the same anywhere in a stream.  Logits of the two differ by up to some per cent where the slopes are no powers of two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.models.falcon.modeling_falcon import FalconAttention, apply_rotary_pos_emb

from penstock.models.adapters import Replacement, Seat, alibi_of


class Adapter(Replacement):
    """Reads and writes a memory in every Falcon attention layer."""

    layer_class = FalconAttention

    def __init__(self, hf: nn.Module) -> None:
        super().__init__(hf)
        config: Any = hf.config
        self.tolerance = 2e-2 if config.alibi else 1e-3

    @staticmethod
    def attend(
        module: Any, seat: Seat, hidden_states: Tensor, alibi: Tensor | None, attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor] | None = None, **kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """FalconAttention.forward with a step: hidden_states [B, N, hidden]."""
        query, key, value = split(module, module.query_key_value(hidden_states))
        if alibi is None:
            assert position_embeddings is not None
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        elif seat.alibi is None and alibi.shape[-1] > 1:
            seat.alibi = alibi_of(alibi, 0, 1 / math.sqrt(module.head_dim))
        out = seat.step.attend(module.layer_idx, query, key, value, scale=module.inv_norm_factor)
        return module.dense(out.flatten(2)), None

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """The model's own attention, through the path in which the ALiBi bias counts once.

        Eager attention in transformers adds the bias to the scores and again with the mask.
        """
        config: Any = self.hf.config
        before = config._attn_implementation
        config._attn_implementation = "sdpa" if config.alibi else before
        try:
            with super().suspended():
                yield
        finally:
            config._attn_implementation = before


def split(module: Any, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query [B, Hq, N, D], key and value [B, Hkv, N, D] from the fused projection [B, N, ...], heads not repeated."""
    if module.new_decoder_architecture:
        batch, count, _ = fused.shape
        group = module.num_heads // module.num_kv_heads
        parts = fused.view(batch, count, module.num_kv_heads, group + 2, module.head_dim)
        query, key, value = parts[:, :, :, :-2].flatten(2, 3), parts[:, :, :, -2], parts[:, :, :, -1]
    else:
        query, key, value = module._split_heads(fused)
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


__all__ = ["Adapter"]
