"""Native steps over any memory: all that reads weights is native, attention is the memory's own.

A step is cut where a layer attends:

    embed, QKV of layer 0 | attend | out, MLP of layer 0, QKV of layer 1 | attend | ...  | out, MLP of the last, logits

and each piece between two attentions (a stretch) is one call of the library, on its threads and tiles.  Of attention,
the reading of all parts is one call too (reading.py).
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from penstock.kernels import library as lib
from penstock.kernels.choosing import Choosing
from penstock.kernels.reading import Reading
from penstock.kernels.weights import Weights
from penstock.memory import Memory
from penstock.memory.flow import FlowPlan


class Split:
    """The native stretches of one model around the attention of one memory."""

    def __init__(self, weights: Weights, memory: Memory, vocabulary: int) -> None:
        self.weights, self.memory, self.vocabulary = weights, memory, vocabulary
        self._run = lib.library().pk_run_stretch
        first = memory.geometry.layers[0]
        self._heads, self._kv, self._width = first.query_heads, first.kv_heads, first.key_width
        self._reading, self._choosing = Reading(), Choosing()
        self._layers = [layer.index for layer in memory.geometry.layers]

    def run(self, step: Any, tokens: Tensor, places: Tensor | None) -> Tensor | None:
        """Tokens [N] int64 through a planned step of the memory, logits [k, V] at `places` [k]."""
        tokens, count = tokens.contiguous(), len(tokens)
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.vocabulary:
            raise IndexError(f"a token is outside of the vocabulary of {self.vocabulary}")
        for plan in step.plans:
            if isinstance(plan, FlowPlan):
                plan.read, plan.chooser = self._reading.read, self._choosing
        dtype = self.memory.geometry.dtype
        hidden = torch.empty(count, self.weights.hidden)
        own = lib.Stretch(
            tokens=tokens.data_ptr(), hidden=hidden.data_ptr(), count=count, threads=self.weights.threads(count)
        )
        heads = (self._heads, self._kv, self._kv)
        for i, layer in enumerate(self._layers):
            # They are the memory's from here on, queries until their unit ends: each layer has tensors of its own.
            made = [torch.empty(count, each, self._width, dtype=dtype) for each in heads]
            own.query, own.key, own.value = (x.data_ptr() for x in made)
            own.layer = i
            self._call(own)
            parts = (x.transpose(0, 1)[None] for x in made)
            attended = step.attend(layer, *parts, scale=self.weights.scale).contiguous()
            own.attended = attended.data_ptr()
        own.layer = len(self._layers)
        out = None
        if places is not None:
            places = places.contiguous()
            out = torch.empty(len(places), self.vocabulary, dtype=dtype)
            own.places, own.wanted, own.logits = places.data_ptr(), len(places), out.data_ptr()
        self._call(own)
        return out

    def _call(self, stretch: lib.Stretch) -> None:
        if self._run(self.weights.handle, ctypes.byref(stretch)):
            raise MemoryError("there is no memory for the intermediate results of a native step")
