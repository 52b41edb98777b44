"""A tiny model, read through a method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.core import Span
from penstock.memory import Memory
from penstock.methods import parse
from penstock.models.attach import Attached
from penstock.models.probe import attach
from penstock.testing import tiny_model


@dataclass
class Running:
    """One attached tiny model."""

    attached: Attached

    @classmethod
    def of(cls, family: str = "llama", **settings: object) -> Running:
        return cls(attach(tiny_model(family, seed=5, **settings)))

    def memory(self, method: str, budget: int | None = None, naive: bool = False) -> Memory:
        geometry = self.attached.geometry
        return Memory(geometry, parse(method).cascades(geometry, budget), naive=naive)

    @torch.no_grad()
    def feed(self, memory: Memory, tokens: Tensor, chunk: int | None = None) -> Tensor:
        """Logits [N, V] of tokens in steps of `chunk`, whole if None."""
        outs = []
        for part in tokens.split(chunk or len(tokens)):
            start = memory.length()
            where = torch.arange(start, start + len(part)) if self.attached.geometry.is_absolute else None
            with memory.step([Span(0, len(part))]) as step:
                outs.append(self.attached.run(part, step, where, "all"))
        return torch.cat(outs)

    @torch.no_grad()
    def native(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits [N, V] of the model's own attention over all tokens at once."""
        with self.attached.native():
            where = None if positions is None else positions[None]
            return self.attached.hf(input_ids=tokens[None], position_ids=where, use_cache=False).logits[0]


def difference(got: Tensor, expected: Tensor) -> float:
    """Largest difference of logits, relative to max(1, largest logit)."""
    return float((got.double() - expected.double()).abs().max() / max(1.0, float(expected.abs().max())))
