"""Merging: entries that are alike become one, which stands for all of them.

If the keys of a group are equal, attention over the group is attention over one entry with that key, the mean of the
values, and the logarithm of the count added to the score.  Where keys are only alike this is an approximation.  Places
are fixed in number and the same for all heads; empty ones have a negative index seen and a bias that hides them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from penstock.memory.attend import MASKED
from penstock.memory.entries import Entries
from penstock.memory.parts import Place, State
from penstock.memory.summaries import Summary


@dataclass(frozen=True)
class Merged(Summary):
    """Base of parts that merge: up to `size` entries per head, each with the count of what it stands for."""

    biased: ClassVar[bool] = True

    size: int

    @property
    def entries(self) -> int:
        return self.size

    def nbytes(self, place: Place) -> int:
        return (super().nbytes(place) or 0) + self.size * place.heads * 8

    def begin(self, place: Place) -> State:
        return {**super().begin(place), "count": torch.zeros(place.heads, 0, dtype=torch.int64)}


def bias_of(count: Tensor, device: torch.device) -> Tensor:
    """[H, T] float32: the logarithm of counts; an empty place is hidden."""
    return torch.where(count > 0, count.clamp_min(1).double().log(), MASKED).to(device, torch.float32)


def merge(held: Entries, count: Tensor, arriving: Entries, target: Tensor, *, average: bool) -> tuple[Entries, Tensor]:
    """Fold arrivals into the held entries `target` [H, U] (-1: into none) and count them (count [H, T]).

    The value becomes the mean of all that an entry stands for, the key too if `average`; its index seen that of the
    newest.
    """
    joins, into = target >= 0, target.clamp_min(0)
    after = count.scatter_add(1, into, joins.to(count.dtype))
    share = 1.0 / after.clamp_min(1).to(held.key.device, held.key.dtype)[..., None]

    def mean(old: Tensor, new: Tensor) -> Tensor:
        where = into.to(old.device)[..., None].expand(*into.shape, old.shape[-1])
        change = (new - old.gather(1, where)) * joins.to(old.device)[..., None]
        return old + torch.zeros_like(old).scatter_add_(1, where, change) * share

    def newest(old: Tensor, new: Tensor) -> Tensor:
        return old.scatter_reduce(1, into, torch.where(joins, new, old.gather(1, into)), "amax")

    changed: dict[str, Any] = {"value": mean(held.value, arriving.value), "seen": newest(held.seen, arriving.seen)}
    if average:
        changed["key"] = mean(held.key, arriving.key)
    if held.place is not None and arriving.place is not None:
        changed["place"] = newest(held.place, arriving.place)
    return replace(held, **changed), after


def alike(arriving: Tensor, held: Tensor) -> Tensor:
    """[H, U, T]: cosines between keys [H, U, D] and [H, T, D]."""
    unit = torch.nn.functional.normalize(held, dim=-1)
    return torch.nn.functional.normalize(arriving, dim=-1) @ unit.transpose(1, 2)


def most_alike(near: Tensor) -> tuple[Tensor, Tensor]:
    """Of cosines [H, U, T]: the largest and its index [H, U].

    Of those that rounding could make the largest, which equal keys are, it is the first: a choice must not hang on the
    size of the step in which a key was computed.
    """
    best = near.amax(-1)
    return best, (near >= best[..., None] - 1e-5).to(torch.uint8).argmax(-1)


@cache
def _planes(seed: int, count: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator)


def codes(keys: Tensor, bits: int, seed: int) -> Tensor:
    """[..., bits] bool: on which side of fixed random hyperplanes the keys [..., D] are."""
    return keys.float() @ _planes(seed, bits, keys.shape[-1]).to(keys.device).T > 0
