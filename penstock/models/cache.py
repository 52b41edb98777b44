"""A memory in the form of a transformers `Cache`: what penstock/cache.py gives names to.

A cache alone never sees a query, and bounded memories number keys and queries together.  With the attention
implementation "penstock" (or for a family with an adapter) the cache hands the model the step of a memory, by a hook
around the model's forward: transformers' own cache calls are not used.  With another implementation a cache can only
return keys, so only what keeps everything, or a window at its stream positions, works (plain.py).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from penstock.errors import CompositionError, UnsupportedModel, UsageError
from penstock.memory import Geometry, Placement
from penstock.models.adapters import has_adapter
from penstock.models.attach import IMPLEMENTATION
from penstock.models.batch import Through
from penstock.models.plain import WindowLayer, Windows
from penstock.models.probe import attach


@dataclass(frozen=True)
class Composition:
    """What a cache is to keep: a name for messages, and the cascades for a model's layers.

    `cascades` may refuse a geometry.  `grows` says that they keep everything.
    """

    name: str
    grows: bool
    cascades: Callable[[Geometry], Sequence[Placement]]


class MemoryCache(Cache):
    """A memory as `past_key_values`: rows are those of the batch, with padding on any side.

    A second call of `generate` or of the model continues the streams.  Raises UnsupportedModel or UsageError where the
    model and the composition could not be right together.
    """

    def __init__(self, model: nn.Module, composition: Composition) -> None:
        config: Any = model.config
        text = config.get_text_config()
        self.model, self.composition = model, composition
        self._reader: Through | Windows | None = None
        if text._attn_implementation == IMPLEMENTATION or has_adapter(model):
            super().__init__(layers=[])
            attached = attach(model)
            _when_gone(self, attached.detach)
            self._reader = Through(attached, composition.cascades(attached.geometry))
        elif composition.grows:
            super().__init__(layer_class_to_replicate=DynamicLayer)
        else:
            layers, dtype = _window_layers(model, composition, text._attn_implementation)
            super().__init__(layers=layers)
            self._reader = Windows(layers, text, dtype)
        if self._reader is not None:
            _hook(self, model)

    # -- around the model's forward -----------------------------------------------------------------------------

    def _before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        assert self._reader is not None
        inputs = kwargs.get("input_ids")
        inputs = kwargs.get("inputs_embeds") if inputs is None else inputs
        inputs = args[0] if inputs is None else inputs
        if kwargs.get("use_cache") is False:
            raise UsageError("use_cache is off, so the model would be given the whole text again: pass use_cache=True.")
        given = [name for name in kwargs if "pixel_values" in name or "input_features" in name]
        if any(kwargs[name] is not None for name in given):
            raise UnsupportedModel("a penstock cache reads text only so far: leave out images, video and sound.")
        real = _real_tokens(kwargs.get("attention_mask"), inputs)
        return args, {**kwargs, **self._reader.begin(real)}

    def _after(self, output: Any) -> Any:
        assert self._reader is not None
        if not self._reader.end(failed=output is None) or output is None:
            return output
        if isinstance(output, tuple):
            return (*output[:1], self, *output[1:])
        output["past_key_values"] = self
        return output

    # -- what transformers asks of a cache ------------------------------------------------------------------------

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by attention layers of models with their own attention."""
        if isinstance(self._reader, Through):
            raise UsageError("a penstock cache works around the whole model: call the model itself, not a part of it.")
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the batch so far, padding included (seen, not stored)."""
        return self._reader.seen if isinstance(self._reader, Through) else super().get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """(keys that the next queries could read, index of the first)."""
        if isinstance(self._reader, Through):
            return self._reader.seen + query_length, 0
        return super().get_mask_sizes(query_length, layer_idx)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: a stream has no largest length."""
        return -1

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """As get_max_length, under its older name."""
        return -1

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return self.get_seq_length() > 0

    @property
    def is_croppable(self) -> bool:
        """Whether any number of tokens can be taken back."""
        return self.composition.grows

    @property
    def batch_size(self) -> int:
        """Rows, or -1 before the first call."""
        if isinstance(self._reader, Through):
            return -1 if self._reader.memory is None else self._reader.memory.num_rows
        keys = self.layers[0].keys if self.layers else None
        return -1 if keys is None else int(keys.shape[0])

    max_batch_size = batch_size

    def reset(self) -> None:
        """New streams begin."""
        if isinstance(self._reader, Through):
            self._reader.reset()
            return
        if self.layer_class_to_replicate is not None:
            self.layers.clear()
        for layer in self.layers:
            layer.reset()
        if self._reader is not None:
            self._reader.reset()

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the newest -tokens_to_remove tokens of every row; NotRewindable where they changed what stays."""
        if isinstance(self._reader, Through):
            self._reader.crop(-tokens_to_remove)
        else:
            super().crop(tokens_to_remove)

    def activate_past_recording(self) -> None:
        """From now on tokens of the newest call can be taken back exactly with `crop` (speculation).

        The call must be shorter than the memory and than 256 tokens: what passes through within one call is gone.
        """
        if isinstance(self._reader, Through):
            self._reader.recording = True

    def fork(self) -> MemoryCache:
        """A copy that continues on its own, on the same model.  `copy.deepcopy` does the same."""
        twin = MemoryCache(self.model, self.composition)
        twin.layers = copy.deepcopy(self.layers)
        if isinstance(self._reader, Windows):
            twin._reader = Windows(twin.layers, self._reader.text, self._reader.dtype)
        if self._reader is not None:
            self._reader.copy_to(twin._reader)  # type: ignore[arg-type]
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryCache:
        return self.fork()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes a copy of row beam_idx[i]."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order; rows may be repeated."""
        if self._reader is not None:
            self._reader.select(indices)
        if not isinstance(self._reader, Through):
            for layer in self.layers:
                layer.batch_select_indices(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        rows = torch.arange(max(self.batch_size, 0))
        self.batch_select_indices(rows.repeat_interleave(repeats))


def _window_layers(
    model: nn.Module, composition: Composition, attention: str
) -> tuple[list[WindowLayer], torch.dtype]:  # fmt: skip
    """Plain layers for a composition that is nothing but windows at their stream positions, and the model's dtype."""
    attached = attach(model, verify=False)
    attached.detach()
    cascades, reach = composition.cascades(attached.geometry), attached.geometry.reach
    if any(not c.is_simple or c.sinks or len(c.windows) != 1 for c in cascades):
        raise CompositionError(
            f"{composition.name} numbers keys and queries together, and a transformers cache sees no query: load the "
            "model with attn_implementation='penstock', or call model.set_attn_implementation('penstock') first; "
            "without it only memory='dense' and memory='window' work."
        )
    if attention not in ("sdpa", "eager"):
        raise UsageError(f"{composition.name} needs masks that {attention} cannot take: use sdpa, eager or penstock.")
    if reach is not None:
        raise UnsupportedModel(
            f"this model changes its rotary frequencies after {reach} tokens, and plain cache layers keep keys as they "
            "were turned: use attn_implementation='penstock'."
        )
    return [WindowLayer(cascade.windows[0]) for cascade in cascades], attached.geometry.dtype


def _real_tokens(mask: Any, inputs: Tensor) -> Tensor:
    """[B, T] bool: which of the new tokens are no padding."""
    batch, count = inputs.shape[:2]
    if mask is None:
        return torch.ones(batch, count, dtype=torch.bool, device=inputs.device)
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise UsageError("a penstock cache decides which keys are read: give an attention_mask [B, T] of padding.")
    return mask[:, -count:].bool()


def _hook(cache: Any, model: nn.Module) -> None:
    """Put the cache around the model's forward for as long as it lives."""
    here = weakref.ref(cache)
    running: list[Any] = []  # passes that began, until they end

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        given: Any = kwargs.get("past_key_values")
        ours = given is not None and id(given) == id(here())
        if not ours:
            return None
        running.append(given)
        return given._before(args, kwargs)

    def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        return running.pop()._after(output) if running else output

    handles = (
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, with_kwargs=True, always_call=True),
    )
    for handle in handles:
        _when_gone(cache, handle.remove)


def _when_gone(cache: Any, action: Callable[[], object]) -> None:
    """Do it when the cache is no longer used."""
    weakref.finalize(cache, action).atexit = False
