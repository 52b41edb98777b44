"""Choose the next token: greedy, or temperature with top-k and top-p, from a generator of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from penstock.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How a reply is chosen.  Temperature 0 is greedy; `stop` strings end the reply and are not part of it.

    `said` are token ids that were chosen before: the reply begins with them, whatever the model would say now.
    """

    max_new: int = 128
    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    stop: tuple[str, ...] = field(default=())
    seed: int = 0
    said: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        rules = [
            (self.max_new >= 1, "max_new", "at least 1"),
            (self.temperature >= 0, "temperature", "0 or more"),
            (self.top_k >= 0, "top_k", "0 or more"),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1"),
            (all(self.stop), "stop", "non-empty texts"),
        ]
        for fine, name, rule in rules:
            if not fine:
                raise UsageError(f"{name} cannot be {getattr(self, name)!r}: give {rule}.")


class Sampler:
    """Draws tokens for one reply; `state` makes a continuation repeatable."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.generator = torch.Generator().manual_seed(sampling.seed)
        self._said = iter(sampling.said)

    def choose(self, logits: Tensor) -> int:
        """The next token id from logits [V]."""
        for said in self._said:
            return said
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        scores = logits.detach().float().cpu() / self.sampling.temperature
        if 0 < self.sampling.top_k < scores.numel():
            floor = scores.topk(self.sampling.top_k).values[-1]
            scores = scores.masked_fill(scores < floor, float("-inf"))
        if self.sampling.top_p < 1:
            ordered, order = scores.sort(descending=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # mass of better tokens
            scores = scores.index_fill(0, order[before >= self.sampling.top_p], float("-inf"))
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self.generator))

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state().tolist()}
