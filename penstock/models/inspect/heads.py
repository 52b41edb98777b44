"""What was measured of a head, what kind of head it is, and the training-free score of a key-value head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from penstock.memory import Alibi, Layer, Rotary
from penstock.models.inspect.dense import Rule

Kind = Literal["retrieval", "sink", "local", "broad"]

RETRIEVES = 0.1  # mass on the token to copy from which on a head counts as one that retrieves; guessing gives 0.01
LOCAL = 0.5  # share of the newest tokens from which on a head counts as local


@dataclass(frozen=True)
class Head:
    """One query head; shares are of one, over queries that are far enough from the first tokens."""

    head: int
    kv_head: int
    importance: float  # of the first token: mean attention that it gets in a prompt
    sink_rate: float  # share of the prompts in which that is above epsilon
    first: float  # share of the first tokens
    local: float  # share of the newest tokens
    learned: float  # share of a learned sink, in models that have one
    distance: float  # mean distance of what it reads, in tokens
    copy: float  # mass on the token to copy, in a text that comes twice
    kind: Kind

    @property
    def far(self) -> float:
        """The share that a memory of first and newest tokens would lose."""
        return max(0.0, 1.0 - self.first - self.local - self.learned)


@dataclass(frozen=True)
class LayerHeads:
    """One layer: its query heads, and the training-free score of each key-value head."""

    index: int
    window: int | None
    heads: tuple[Head, ...]
    old_mass: tuple[float, ...]  # per key-value head
    copy: tuple[float, ...]  # per key-value head: of its best query head

    @property
    def local(self) -> tuple[float, ...]:
        """Per key-value head: share of the newest tokens in what is not on the first ones, mean of its query heads."""
        out = []
        for kv_head in range(len(self.old_mass)):
            mine = [head for head in self.heads if head.kv_head == kv_head]
            out.append(sum(head.local / max(1e-9, head.local + head.far) for head in mine) / len(mine))
        return tuple(out)


def kind_of(copy: float, importance: float, local: float, epsilon: float) -> Kind:
    """The first that holds: it retrieves, it rests on the first token, it reads what is new, it reads everything."""
    if copy >= RETRIEVES:
        return "retrieval"
    if importance > epsilon:
        return "sink"
    return "local" if local >= LOCAL else "broad"


def old_mass(query: Tensor, key: Tensor, layer: Layer, rule: Rule, repeats: int = 500) -> Tensor:
    """[Hkv]: how far back a head looks by position alone; 1 is the oldest key, 1 / repeats the newest, 0.5 no choice.

    The mean raw query [Hq, D] and key [Hkv, D] of a text stand at positions 0 .. repeats - 1; the score is the mean of
    the last query's cumulative attention, the oldest key first.  Query heads of one key-value head are averaged.
    """
    query, key = query.float().cpu(), key.float().cpu()
    keys = key[:, None].expand(-1, repeats, -1)  # [Hkv, T, D]
    last = torch.tensor([repeats - 1])
    places = torch.arange(repeats)
    if isinstance(layer.encoding, Rotary):
        keys = layer.encoding.rotate(keys, layer.encoding.angles(places))
        query = layer.encoding.rotate(query[:, None], layer.encoding.angles(last))[:, 0]
    grouped = query.unflatten(0, (key.shape[0], -1))  # [Hkv, G, D]
    scores = grouped @ keys.transpose(-1, -2) * rule.scale  # [Hkv, G, T]
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    if isinstance(layer.encoding, Alibi):
        scores = scores + layer.encoding.bias(last, places)[:, 0].view_as(scores)
    if layer.window is not None:
        scores = scores.masked_fill(last - places >= layer.window, float("-inf"))
    return scores.softmax(-1).cumsum(-1).mean(-1).mean(-1)
