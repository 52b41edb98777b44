"""The seam: a transformers model reads our memories instead of its own cache.

The model is not changed.  We register an attention function with transformers' `AttentionInterface` and hand the step
of the memory to the model's forward as the keyword `memory`, which transformers carries to every attention layer.  A
registered attention without a mask function gets `attention_mask=None`: the memory owns visibility.

Rotary models are run at position 0, where their rotation is the identity; the memory rotates (memory/positions.py).
Models with learned absolute positions are given the stream's own positions, up to the end of their table.

Everything that knows a version of transformers is in this file, probe.py with masks.py and encodings.py, cache.py with
plain.py, and adapters/.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from penstock.errors import UnsupportedModel
from penstock.memory import Geometry
from penstock.models.embedded import Inputs, forward_embedded
from penstock.models.products import Unwatched, products

IMPLEMENTATION = "penstock"

# Held while a model is being compiled in the background.  Compilers patch Python objects that all threads use (fx wraps
# the calls of every module while it traces), so whoever runs a model for the first time waits, and a step that fails
# meanwhile is run again (models/paths.py).
COMPILING = threading.RLock()
_OWN = "_penstock_own"  # where a model carries what it used before us
Logits = Literal["last", "all", "none"]


class CalledWithoutMemory(UnsupportedModel):
    """A layer that looks back was called without a memory."""


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, memory: Any = None, softcap: float | None = None,
    s_aux: Tensor | None = None, is_causal: bool | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls in every attention layer: query [B, Hq, N, D], key and value [B, Hkv, N, D]."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if memory is not None:
        if isinstance(memory, Recorder):
            memory.note(module, attention_mask)
        out = memory.attend(module.layer_idx, query, key, value, scale=scale, softcap=softcap, sink_logit=s_aux)
        return out.contiguous(), None  # as the library's own functions: some models take a view of it
    return _without_memory(module, query, key, value, attention_mask, scale, softcap, s_aux, is_causal), None


def _without_memory(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float,
    softcap: float | None, s_aux: Tensor | None, is_causal: bool | None,
) -> Tensor:  # fmt: skip
    """Plain attention for the parts of a model that have no memory, such as a vision tower.

    A layer that looks back without a memory is refused: it was given no mask, so windows and padding would be lost.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if causal or softcap is not None or s_aux is not None:
        raise CalledWithoutMemory(
            "this model is attached to penstock and was called without a memory: use penstock.open, pass a "
            "penstock StreamCache as past_key_values, or give it its own attention back (detach, or "
            "set_attn_implementation('sdpa'))."
        )
    grouped = query.shape[1] != key.shape[1]
    out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


AttentionInterface.register(IMPLEMENTATION, attention)


class Recorder:
    """A step that stores nothing: it notes the raw queries and keys of each layer and answers with zeros.

    With attention silenced, what a layer computes depends on positions only through the layer's own encoding.
    """

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, Any]] = {}
        self._called: dict[str, Any] = {}

    def note(self, module: nn.Module, mask: Tensor | None) -> None:
        """What the interface tells beside queries and keys; called just before `attend`."""
        self._called = {"mask": mask, "causal": getattr(module, "is_causal", True)}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None = None,
        sink_logit: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As Step.attend."""
        called, self._called = self._called, {}
        self.seen[layer] = {"query": query.detach(), "key": key.detach(), "value_width": value.shape[-1], **called}
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])


class Own:
    """The attention that a model used before us, part by part (a model may have a vision tower and a text part).

    Several attachments of one model share it: the first takes the place, the last one to leave restores.
    """

    def __init__(self, hf: nn.Module) -> None:
        self.hf = hf
        self.users = 0
        self.geometry: Geometry | None = None  # as probed and checked by the first attachment
        self.parts = [(config, config._attn_implementation) for config in _configs(hf.config)]
        self.fallback = "sdpa" if getattr(hf, "_supports_sdpa", False) else "eager"

    @classmethod
    def take(cls, hf: nn.Module) -> Own:
        """Put our attention in place; ValueError or ImportError where the model refuses."""
        own: Own = hf.__dict__.get(_OWN) or cls(hf)
        hf.set_attn_implementation(IMPLEMENTATION)  # type: ignore[operator]
        hf.__dict__[_OWN] = own
        own.users += 1
        return own

    def give_back(self) -> None:
        """One attachment less; the last restores."""
        self.users -= 1
        if self.users == 0:
            self.hf.__dict__.pop(_OWN, None)
            for config, name in self.parts:
                config._attn_implementation = name

    @property
    def is_replaced(self) -> bool:
        """Whether our attention is in place: someone may have set another one since."""
        config: Any = self.hf.config
        return config.get_text_config()._attn_implementation == IMPLEMENTATION

    @contextmanager
    def native(self) -> Iterator[None]:
        """Inside, the model uses its own attention (the library's, if it was loaded with ours)."""
        for config, name in self.parts:
            config._attn_implementation = self.fallback if name == IMPLEMENTATION else name
        try:
            yield
        finally:
            self.hf.set_attn_implementation(IMPLEMENTATION)  # type: ignore[operator]

    @contextmanager
    def replaced(self, name: str) -> Iterator[None]:
        """Inside, the model uses another attention: a registered one, or `eager`, the model file's own."""
        self.hf.set_attn_implementation(name)  # type: ignore[operator]
        try:
            yield
        finally:
            self.hf.set_attn_implementation(IMPLEMENTATION)  # type: ignore[operator]


def _configs(config: Any) -> list[Any]:
    """A configuration and those inside it, outer ones first (setting an outer one sets the inner ones too)."""
    out, queue = [], [config]
    while queue:
        current = queue.pop(0)
        out.append(current)
        queue += [inner for name in current.sub_configs if (inner := getattr(current, name, None)) is not None]
    return out


@dataclass
class Attached:
    """A transformers model whose attention layers read a memory.

    `run` takes packed tokens [N] and a step planned for them.  `adapter` is set for the few families whose attention
    cannot be reached through the interface.
    """

    hf: nn.Module
    geometry: Geometry
    vocabulary: int
    own: Own | None
    adapter: Any = None
    _detached: bool = False

    @property
    def device(self) -> torch.device:
        return self.geometry.device

    def run(
        self, tokens: Tensor, step: Any, positions: Tensor | None = None, logits: Logits | Tensor = "last",
        inputs: Inputs | None = None,
    ) -> Tensor | None:  # fmt: skip
        """One forward pass: tokens [N] int64; logits [1, V] of the last token, [N, V] of all, or None.

        `logits` may also be a tensor of places [k] int64 in the step; the result is then [k, V].

        `positions` [N] are needed only by models with learned absolute positions; `inputs` are embeddings of pictures.
        """
        if self.own is not None and not self.own.is_replaced:
            raise UnsupportedModel(
                f"{type(self.hf).__name__} was given another attention after it was attached: "
                "set it back with set_attn_implementation('penstock'), or open it anew."
            )
        with products(self.geometry.dtype, self.device, len(tokens)) as wide:
            step = step if wide is None or isinstance(step, Recorder) else Unwatched(step)
            if inputs is not None and (inputs.embeddings is not None or inputs.offsets is not None):
                return forward_embedded(self.hf, tokens, step, inputs, logits)
            return forward(self.hf, self.adapter, tokens, step, positions, logits)

    def detach(self) -> None:
        """Give the model back its own attention, once the last attachment of this model has left."""
        if self._detached:
            return
        self._detached = True
        if self.adapter is not None:
            self.adapter.remove()
        elif self.own is not None:
            self.own.give_back()

    @contextmanager
    def native(self, reference: bool = False) -> Iterator[None]:
        """Inside, the model uses its own attention, or the one that its file spells out (`reference`).

        They are not always the same: sdpa of transformers 5.17 silently leaves out Gemma2's soft-capping.
        """
        if self.own is None:
            inside = self.adapter.suspended()
        else:
            inside = self.own.replaced("eager") if reference else self.own.native()
        with inside:
            yield


def forward(
    hf: nn.Module, adapter: Any, tokens: Tensor, step: Any, positions: Tensor | None,
    logits: Logits | Tensor,
) -> Tensor | None:  # fmt: skip
    """The call that hands a step to a transformers model."""
    ids = tokens[None]
    where = torch.zeros_like(ids) if positions is None else positions[None]
    keep = logits if isinstance(logits, Tensor) else 0 if logits == "all" else 1
    if adapter is not None:
        with adapter.use(step):
            out = hf(input_ids=ids, position_ids=where, use_cache=False, logits_to_keep=keep)
    else:
        out = hf(input_ids=ids, position_ids=where, use_cache=False, logits_to_keep=keep, memory=step)
    if isinstance(logits, str) and logits == "none":
        return None
    result = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return result[0] if isinstance(logits, Tensor) or logits == "all" else result[0, -1:]
