"""A vision tower run layer by layer, for reducers that leave parts of it out (penstock/reducers/stc_cache.py).

The rest of the tower (patches, norms, projector) stays the model's own: while a picture is encoded, the list of its
layers holds one module that does all of them our way; afterwards it holds what it held.  A tower is taken only if its
own result comes out that way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from penstock.errors import CompositionError
from penstock.models.vision.tower import Vision
from penstock.models.vision.visual import Visual

Run = Callable[[list[Any], Tensor], Tensor]  # (layers, behind the patches [T, D]) -> behind the last layer [T, D]


class Names(NamedTuple):
    """What the parts of a layer are called in a family of towers."""

    norm1: str
    attention: str
    out: str
    norm2: str
    scales: tuple[str, str] | None = None


_KNOWN = (
    Names("layer_norm1", "self_attn", "out_proj", "layer_norm2"),  # SigLIP and its kin
    Names("layernorm_before", "attention", "projection_layer", "layernorm_after", ("lambda_1", "lambda_2")),  # InternVL
)


@dataclass(frozen=True)
class Block:
    """One layer of a tower in pieces (`TowerLayer`); tensors are [T, D]."""

    layer: Any
    names: Names

    def norm1(self, x: Tensor) -> Tensor:
        return self._part(self.names.norm1)(x)

    def norm2(self, x: Tensor) -> Tensor:
        return self._part(self.names.norm2)(x)

    def qkv(self, x: Tensor, part: int) -> Tensor:
        attention, letter = self._part(self.names.attention), "qkv"[part]
        made = getattr(attention, f"{letter}_proj")(x)
        norm = getattr(attention, f"{letter}_norm", None)
        return made if norm is None else norm(made)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attention = self._part(self.names.attention)
        heads = attention.num_heads
        q, k, v = (x.view(len(x), heads, -1).transpose(0, 1)[None] for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=attention.scale)[0]
        return self._scaled(getattr(attention, self.names.out)(out.transpose(0, 1).flatten(1)), 0)

    def mlp(self, x: Tensor) -> Tensor:
        return self._scaled(self.layer.mlp(x), 1)

    def _part(self, name: str) -> Any:
        return getattr(self.layer, name)

    def _scaled(self, x: Tensor, which: int) -> Tensor:
        scales = self.names.scales
        return x if scales is None else x * getattr(self.layer, scales[which])


class _Instead(nn.Module):
    """In the place of all layers."""

    def __init__(self, blocks: list[Block], run: Run) -> None:
        super().__init__()
        self._blocks, self._run = blocks, run

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        """[pictures, T, D]; pictures one behind the other."""
        return torch.stack([self._run(self._blocks, picture) for picture in hidden])


def _found(hf: nn.Module) -> tuple[nn.Module, str, nn.ModuleList, Names] | None:
    """The list of a tower's layers and who holds it."""
    for where, owner in hf.named_modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and len(child) and "vision" in f"{where}.{name}":
                for names in _KNOWN:
                    parts = (names.norm1, names.attention, names.norm2, "mlp", *(names.scales or ()))
                    attention = getattr(child[0], names.attention, None)
                    if all(hasattr(child[0], part) for part in parts) and hasattr(attention, names.out):
                        return owner, name, child, names
    return None


@contextmanager
def layer_by_layer(hf: nn.Module, run: Run) -> Iterator[None]:
    """In here the vision tower's layers are run by `run`; CompositionError if we do not know their parts."""
    found = _found(hf)
    if found is None:
        raise CompositionError(f"the vision tower of {type(hf).__name__} cannot be run layer by layer: leave that out.")
    owner, name, layers, names = found
    setattr(owner, name, nn.ModuleList([_Instead([Block(layer, names) for layer in layers], run)]))
    try:
        yield
    finally:
        setattr(owner, name, layers)


def plain(blocks: list[Block], hidden: Tensor) -> Tensor:
    """All layers, in full: what the tower does itself."""
    for block in blocks:
        x = block.norm1(hidden)
        hidden = hidden + block.attend(*(block.qkv(x, part) for part in range(3)))
        hidden = hidden + block.mlp(block.norm2(hidden))
    return hidden


def can_run(vision: Vision) -> bool:
    """Whether a tower's own result comes out when its layers are run one by one."""
    hf: Any = vision.model.attached.hf
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    settled = vision.size
    try:
        expected = vision.encode([image])
        with layer_by_layer(hf, plain):
            found = vision.encode([image])
    except (CompositionError, AttributeError, TypeError, ValueError, IndexError, RuntimeError):
        return False
    finally:
        vision.size = settled
    return _same(found, expected)


def _same(a: Visual, b: Visual) -> bool:
    scale = max(1.0, float(b.embeddings.abs().max()))
    return a.embeddings.shape == b.embeddings.shape and float((a.embeddings - b.embeddings).abs().max()) < 1e-4 * scale
