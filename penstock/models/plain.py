"""Cache layers for models with their own attention: they return keys to a model that never shows its queries.

All that such a cache can do is forget; which of the kept keys a query reads is for the mask, so `masks` makes one for
each kind of layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from penstock.errors import NotRewindable, UnsupportedModel


class WindowLayer(DynamicLayer):
    """The newest `window` entries of a layer; a query reads `window` of them, itself included, in any chunks."""

    is_croppable = False

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window, self.seen = window, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add [B, Hkv, T, D]; give the entries that the new queries read, [B, Hkv, kept + T, D]."""
        keys, values = super().update(key_states, value_states)
        self.seen += key_states.shape[-2]
        surplus = keys.shape[-2] - (self.window - 1)
        if surplus > 0:  # copies, so that what is forgotten is freed
            self.keys, self.values = keys[:, :, surplus:].clone(), values[:, :, surplus:].clone()
        return keys, values

    @property
    def kept(self) -> int:
        """Entries held for the next step: the window without the query's own."""
        return min(self.seen, self.window - 1)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys that an update returns, index seen of the first)."""
        return self.kept + query_length, self.seen - self.kept

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return self.window

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = None
        self.is_initialized, self.seen = False, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens (a negative number of them), while nothing was evicted."""
        removed = -tokens_to_remove
        if removed == 0:
            return
        if removed < 0 or self.seen > self.window - 1:
            raise NotRewindable(
                "this window evicted entries that a shorter text needs: use memory='dense' where tokens are taken back."
            )
        self.seen -= removed
        self.keys, self.values = self.keys[:, :, : self.seen], self.values[:, :, : self.seen]


def masks(text: Any, windows: list[int], kept: list[int], real: Tensor, count: int, dtype: torch.dtype) -> Any:
    """Additive masks [B, 1, T, kept + T] for `count` new tokens: one tensor, or one by name for each kind of layer.

    `windows` and `kept` per layer; `real` [B, >= kept + T] tells padding from tokens, newest last.
    """
    kinds = list(getattr(text, "layer_types", None) or ["full_attention"] * len(windows))
    out: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    for kind, window, held in zip(kinds, windows, kept):
        if sizes.setdefault(kind, window) != window:
            raise UnsupportedModel(
                "this model has layers of one kind with different windows: load it with attn_implementation='penstock'."
            )
        if kind not in out:
            out[kind] = _mask(window, held, real, count, dtype)
    return out if len(out) > 1 else next(iter(out.values()))


def _mask(window: int, held: int, real: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    query = torch.arange(count, device=real.device)[:, None]
    key = torch.arange(-held, count, device=real.device)[None, :]
    visible = (key <= query) & (key > query - window)  # [T, kept + T]
    visible = visible[None] & real[:, None, real.shape[1] - held - count :]
    mask = torch.zeros(visible.shape, dtype=dtype, device=real.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


class Windows:
    """The masks of window layers, call by call: it remembers which of the kept keys are padding."""

    def __init__(self, layers: list[WindowLayer], text: Any, dtype: torch.dtype) -> None:
        self.layers, self.text, self.dtype = layers, text, dtype
        self.real: Tensor | None = None  # [B, kept] False: padding

    def begin(self, real: Tensor) -> dict[str, Any]:
        """The model's arguments for a pass over `real` [B, T]."""
        whole = real if self.real is None else torch.cat((self.real, real), dim=1)
        windows, kept = [layer.window for layer in self.layers], [layer.kept for layer in self.layers]
        mask = masks(self.text, windows, kept, whole, real.shape[1], self.dtype)
        self.real = whole[:, -max(windows) :]
        return {"attention_mask": mask}

    def end(self, failed: bool) -> bool:
        """The model returned; False: it has put the cache on its output itself."""
        return False

    def reset(self) -> None:
        """New streams begin."""
        self.real = None

    def select(self, indices: Tensor) -> None:
        """Rows in this order."""
        self.real = None if self.real is None else self.real[indices]

    def copy_to(self, other: Windows) -> None:
        """Make the masks of another cache continue from here."""
        other.real = self.real
