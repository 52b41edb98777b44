"""A stack of attention layers without a model around them: queries, keys and values are looked up by token.

With nothing between the layers, what a layer answers depends only on the memory; the tests of this folder compare
memories with each other and with `expected`, the same attention written as one masked softmax over the whole stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from penstock.core import Span
from penstock.memory import Alibi, Cascade, Geometry, Layer, Memory, Rotary
from penstock.memory.positions import Encoding

VOCABULARY = 50


def encodings(width: int, heads: int) -> dict[str, Encoding]:
    """One encoding of each kind, for keys of `width` and queries of `heads` heads."""
    half = 10000.0 ** -(torch.arange(0, width, 2).double() / width)
    return {
        "none": None,
        "half": Rotary(half),
        "interleaved": Rotary(half, interleaved=True),
        "partial": Rotary(half[: max(1, width // 4)]),
        "alibi": Alibi(2.0 ** -torch.arange(1, heads + 1).float()),
    }


@dataclass
class Stack:
    """`windows` gives one layer each: its own sliding window, or None."""

    encoding: str = "half"
    windows: Sequence[int | None] = (None, None)
    heads: int = 4
    kv_heads: int = 2
    width: int = 8
    dtype: torch.dtype = torch.float32
    softcap: float | None = None
    learned_sinks: bool = False
    seed: int = 0
    geometry: Geometry = field(init=False)

    def __post_init__(self) -> None:
        encoding = encodings(self.width, self.heads)[self.encoding]
        shape = (self.heads, self.kv_heads, self.width, self.width, encoding)
        layers = tuple(Layer(i, *shape, window) for i, window in enumerate(self.windows))
        self.geometry = Geometry(layers, self.dtype, torch.device("cpu"))
        generator = torch.Generator().manual_seed(self.seed)

        def table(heads: int) -> Tensor:
            return torch.randn(len(layers), VOCABULARY, heads, self.width, generator=generator).to(self.dtype)

        self.queries, self.keys, self.values = table(self.heads), table(self.kv_heads), table(self.kv_heads)
        self.sinks = torch.randn(self.heads, generator=generator) if self.learned_sinks else None

    def memory(self, cascade: Cascade, rows: int = 1, naive: bool = False) -> Memory:
        """A memory of this stack; layers with a window of their own keep their newest entries only."""
        cascades = [cascade if ly.window is None else cascade.limited_to(ly.window) for ly in self.geometry.layers]
        return Memory(self.geometry, cascades, rows, naive)

    @property
    def scale(self) -> float:
        return self.width**-0.5

    def step(self, memory: Memory, packed: dict[int, list[int]], fail_at: int | None = None) -> dict[int, Tensor]:
        """One packed step: tokens by row in, outputs [L, N, Hq, D] by row out; layer `fail_at` raises instead."""
        spans = [Span(row, len(tokens)) for row, tokens in packed.items()]
        ids = torch.tensor([token for tokens in packed.values() for token in tokens])
        outs = []
        with memory.step(spans) as step:
            for i in range(len(self.windows)):
                if i == fail_at:
                    raise RuntimeError("the model failed")
                query, key, value = (t[i, ids].transpose(0, 1)[None] for t in (self.queries, self.keys, self.values))
                outs.append(
                    step.attend(
                        i, query, key, value, scale=self.scale, softcap=self.softcap, sink_logit=self.sinks
                    )[0]
                )  # fmt: skip
        parts = torch.stack(outs).split([span.count for span in spans], dim=1)
        return {span.row: part for span, part in zip(spans, parts)}

    def feed(self, memory: Memory, tokens: Sequence[int], chunk: int | None = None, row: int = 0) -> Tensor:
        """Tokens of one row in steps of `chunk` (whole if None): outputs [L, N, Hq, D]."""
        size = chunk or len(tokens)
        steps = [self.step(memory, {row: list(tokens[i : i + size])})[row] for i in range(0, len(tokens), size)]
        return torch.cat(steps, dim=1)

    def expected(self, tokens: Sequence[int], cascade: Cascade) -> Tensor:
        """[L, N, Hq, D] float64: one masked softmax per layer over the whole stream, from the rule of indices."""
        ids, count = torch.tensor(list(tokens)), len(tokens)
        now, index = torch.arange(count)[:, None], torch.arange(count)[None, :]
        outs = []
        for i, layer in enumerate(self.geometry.layers):
            rule = cascade if layer.window is None else cascade.limited_to(layer.window)
            query, key, value = (t[i, ids].double().transpose(0, 1) for t in (self.queries, self.keys, self.values))
            key, value = (x.repeat_interleave(self.heads // self.kv_heads, 0) for x in (key, value))
            visible = index <= now
            distance = (now - index).expand(count, count)
            if rule.entries is not None:
                visible = visible & ((index < rule.sinks) | (now - index < sum(rule.windows)))
                if rule.positions != "stream":
                    clamped = now.clamp(max=rule.entries - 1) - index
                    distance = torch.where(index < rule.sinks, clamped, distance)
            scores = self._scores(layer.encoding, query, key, distance)
            if self.softcap is not None and not isinstance(layer.encoding, Alibi):
                scores = torch.tanh(scores / self.softcap) * self.softcap
            scores = scores.masked_fill(~visible, float("-inf"))
            if self.sinks is not None:
                scores = torch.cat((scores, self.sinks.double()[:, None, None].expand(-1, count, 1)), dim=-1)
                value = torch.cat((value, torch.zeros_like(value[:, :1])), dim=1)
            outs.append((scores.softmax(-1) @ value).transpose(0, 1))
        return torch.stack(outs)

    def _scores(self, encoding: Encoding, query: Tensor, key: Tensor, distance: Tensor) -> Tensor:
        """Scaled scores [Hq, N, N] of queries `distance` after their keys."""
        if isinstance(encoding, Alibi):
            plain = query @ key.transpose(-1, -2) * self.scale
            if self.softcap is not None:
                plain = torch.tanh(plain / self.softcap) * self.softcap
            return plain - encoding.slopes.double()[:, None, None] * distance
        if encoding is None:
            return query @ key.transpose(-1, -2) * self.scale
        # A rotation by the distance, written as sums over pairs: q.k cos + (q x k) sin.
        half = encoding.inv_freq.numel()
        pairs = slice(0, 2 * half)
        if encoding.interleaved:
            (qa, qb), (ka, kb) = ((x[..., pairs][..., 0::2], x[..., pairs][..., 1::2]) for x in (query, key))
        else:
            (qa, qb), (ka, kb) = ((x[..., :half], x[..., half : 2 * half]) for x in (query, key))
        turn = distance.double()[..., None] * encoding.inv_freq  # [N, N, R/2]
        along = qa[:, :, None] * ka[:, None] + qb[:, :, None] * kb[:, None]
        across = qa[:, :, None] * kb[:, None] - qb[:, :, None] * ka[:, None]
        rotated = (along * turn.cos() + across * turn.sin()).sum(-1)
        return (rotated + query[..., 2 * half :] @ key[..., 2 * half :].transpose(-1, -2)) * self.scale


def tokens(count: int, seed: int = 0) -> list[int]:
    """`count` random tokens of the stack's vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (count,), generator=generator).tolist()


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to max(1, largest value)."""
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / max(1.0, float(b.abs().max())))
