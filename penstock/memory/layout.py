"""What a memory must know of a model's layers, and nothing more."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from penstock.memory.positions import Encoding


@dataclass(frozen=True, eq=False)
class Layer:
    """One attention layer as found by probing the model (models/probe.py)."""

    index: int
    query_heads: int
    kv_heads: int
    key_width: int
    value_width: int
    encoding: Encoding  # Rotary, Alibi, or None when positions are not in the keys
    window: int | None = None  # the layer's own sliding window, itself included

    def entry_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one stored entry: its keys and values over all key-value heads."""
        return self.kv_heads * (self.key_width + self.value_width) * dtype.itemsize


@dataclass(frozen=True)
class Geometry:
    """All attention layers of one model, the dtype and device of their keys."""

    layers: tuple[Layer, ...]
    dtype: torch.dtype
    device: torch.device
    max_positions: int | None = None  # learned absolute positions end here; None where positions never end
    reach: int | None = None  # rotary frequencies hold for so many positions; None where they never change

    @property
    def is_absolute(self) -> bool:
        """Positions were added to the inputs and cannot be re-assigned."""
        return self.max_positions is not None
