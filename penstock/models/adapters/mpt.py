"""MPT: its attention is written out in the layer.  ALiBi after the scaling, clipped projections, a scale of its own.

The slopes are those of the bias that the model computes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.mpt.modeling_mpt import MptAttention

from penstock.models.adapters import Replacement, Seat, alibi_of


class Adapter(Replacement):
    """Reads and writes a memory in every MPT attention layer."""

    layer_class = MptAttention

    @staticmethod
    def attend(
        module: Any, seat: Seat, hidden_states: Tensor, position_bias: Tensor, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """MptAttention.forward with a step: hidden_states [B, N, hidden]."""
        fused = module.Wqkv(hidden_states)
        if module.clip_qkv:
            fused = fused.clamp(min=-module.clip_qkv, max=module.clip_qkv)
        query, key, value = (
            part.unflatten(-1, (module.n_heads, module.head_dim)).transpose(1, 2) for part in fused.chunk(3, dim=-1)
        )
        if seat.alibi is None:
            seat.alibi = alibi_of(position_bias, position_bias.shape[-1] - 2)
        out = seat.step.attend(module.layer_idx, query, key, value, scale=module.softmax_scale)
        return module.out_proj(out.flatten(2)), None
