"""Dense attention that shows its probabilities to watches, a block of queries at a time, and stores nothing.

A step reads several samples of one length, packed behind each other; each is a stream of its own that begins at
position 0.  It is handed to a model in the place of a memory's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from penstock.memory import Alibi, Geometry, Layer, Rotary

_BLOCK = 1 << 22  # probabilities held at once, at most (16 MiB in float32), one query at least


class Watch:
    """Base of what looks at attention; both methods are called in every layer, for samples that begin at position 0."""

    def states(self, layer: int, query: Tensor, key: Tensor) -> None:
        """Raw queries [S, Hq, L, D] and keys [S, Hkv, L, D] of S samples."""

    def weights(self, layer: int, first: int, weights: Tensor, learned: Tensor | None) -> None:
        """Probabilities [S, Hq, C, first + C] of queries first .. first + C - 1 on all keys so far, float32.

        `learned` [S, Hq, C] is the share of a learned sink, in models that have one; a row and it sum to one.
        """


class Rule(NamedTuple):
    """How a layer makes scores of products."""

    scale: float
    softcap: float | None


class DenseStep:
    """Every query reads all earlier keys of its sample, within the layer's own window."""

    def __init__(self, geometry: Geometry, length: int, watches: Sequence[Watch]) -> None:
        self.layers = {layer.index: layer for layer in geometry.layers}
        self.length, self.watches = length, tuple(watches)
        self.rules: dict[int, Rule] = {}  # by layer, as the model called them

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None = None,
        sink_logit: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As Step.attend: packed and raw [1, H, S * L, D] in, [1, S * L, Hq, Dv] out."""
        info, self.rules[layer] = self.layers[layer], Rule(scale, softcap)
        query, key, value = (self._samples(x) for x in (query, key, value))
        for watch in self.watches:
            watch.states(layer, query, key)
        query, key = self._rotated(info, query), self._rotated(info, key)
        samples, heads = query.shape[:2]
        block = max(1, _BLOCK // (samples * heads * self.length))
        outs = []
        for first in range(0, self.length, block):
            end = min(self.length, first + block)
            mask = self._mask(info, first, end).to(query.device)
            scores = _scores(query[:, :, first:end], key[:, :, :end], scale, softcap) + mask
            learned = None
            if sink_logit is not None:
                logit = sink_logit.float().view(1, -1, 1, 1).expand(samples, -1, end - first, 1)
                both = torch.cat((scores, logit), dim=-1).softmax(-1)
                weights, learned = both[..., :-1], both[..., -1]
            else:
                weights = scores.softmax(-1)
            for watch in self.watches:
                watch.weights(layer, first, weights, learned)
            out = _grouped(weights, value.shape[1]) @ value[:, :, :end].float()  # [S, Hkv, G * C, Dv]
            outs.append(out.view(samples, heads, end - first, -1))
        whole = torch.cat(outs, dim=2).to(value.dtype)  # [S, Hq, L, Dv]
        return whole.transpose(1, 2).reshape(1, samples * self.length, heads, -1)

    def _samples(self, x: Tensor) -> Tensor:
        """[1, H, S * L, D] to [S, H, L, D]."""
        return x[0].unflatten(1, (-1, self.length)).transpose(0, 1)

    def _rotated(self, layer: Layer, x: Tensor) -> Tensor:
        """At positions 0 .. L-1 of each sample, in float32."""
        wide = x.float()
        if not isinstance(layer.encoding, Rotary):
            return wide
        return layer.encoding.rotate(wide, layer.encoding.angles(torch.arange(self.length), x.device))

    def _mask(self, layer: Layer, first: int, end: int) -> Tensor:
        """[C, T] or [Hq, C, T]: what is added to the scores of queries first .. end - 1 and keys 0 .. end - 1."""
        query, key = torch.arange(first, end), torch.arange(end)
        distance = query[:, None] - key[None, :]
        hidden = distance < 0 if layer.window is None else (distance < 0) | (distance >= layer.window)
        bias = torch.zeros(distance.shape)
        if isinstance(layer.encoding, Alibi):
            bias = layer.encoding.bias(query, key)
        return bias.masked_fill(hidden, float("-inf"))


def _grouped(x: Tensor, kv_heads: int) -> Tensor:
    """[S, Hq, C, T] to [S, Hkv, G * C, T]: the query heads of one key-value head become rows of one product."""
    return x.reshape(x.shape[0], kv_heads, -1, x.shape[-1])


def _scores(query: Tensor, key: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Scaled scores [S, Hq, C, T]."""
    scores = torch.matmul(_grouped(query, key.shape[1]), key.transpose(-1, -2)) * scale
    scores = scores.view(*query.shape[:3], key.shape[2])
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap
