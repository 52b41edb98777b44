"""What a law is tried on: a method, a tiny model, a budget.

Everything registered is a case, on one model per way of encoding positions; each value of an option that is one of a
few words is a case of its own on two of them.  A new method file adds its cases by being there.

A method may say more about itself, and the laws ask for it:

    alignment     steps must be cut at multiples of this many tokens for `chunk_invariant` (default 1)
    look_ahead    tokens by which an output may look into the future (default 0)
    lossless()    the method with its lossy switch off, for `exact_when_large` (default: itself)
    rounds        it stores codes: the laws run in float64, where the noise of kernels moves no number over a border
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from penstock.core import Phase, Span
from penstock.errors import BudgetError, CompositionError, UnsupportedModel
from penstock.kernels import library
from penstock.memory import Cascade, Heads, Memory, Placement
from penstock.methods import Method, registry
from penstock.models.attach import Attached
from penstock.models.native import NativeSteps, choose
from penstock.models.probe import attach
from penstock.models.support import check_supported
from penstock.testing import tiny_model

# name of an encoding -> the family that has it
ENCODINGS = {
    "rotary": "llama",
    "partial-rotary": "gpt_neox",
    "alibi": "mpt",
    "some-layers-without": "cohere2",  # interleaved rotary in layers with a window of their own, none in the others
    "learned-sinks": "gpt_oss",
    "learned-positions": "gpt2",
}
EVERYWHERE = ("streaming-llm", "window")  # all laws on all encodings
CHUNKS = (1, 7, 64, None)  # None: whole
LENGTH = 131  # divides by nothing
TOLERANCE = 1e-5
# Methods whose laws run over the native step too, and which: whole steps, then stretches around archives, heads that
# are placed apart, a codec (whose codes differ by the last bit of a product, which the number of rows decides), and
# memories that keep or merge what mattered.
NATIVE: dict[str, frozenset[str] | None] = {
    "window": None,
    "streaming-llm": None,
    "dense": None,
    "infllm": frozenset({"chunk_invariant", "forkable", "resumable"}),
    "rekv": frozenset({"chunk_invariant", "causal"}),
    "lserve": frozenset({"chunk_invariant", "rows_independent"}),
    "double-sparsity": frozenset({"chunk_invariant", "deterministic"}),
    "duo-attention": frozenset({"chunk_invariant", "rows_independent"}),
    "kv8": frozenset({"bounded", "causal"}),
    "heavy-hitters": frozenset({"chunk_invariant", "forkable"}),
    "streaming-vlm": frozenset({"chunk_invariant", "resumable"}),
}
_NATIVE: dict[Memory, NativeSteps] = {}  # apart from the memories, whose bytes are counted


@cache
def attached(family: str, dtype: torch.dtype = torch.float32) -> Attached:
    """A tiny model on penstock, one per process."""
    return attach(tiny_model(family, seed=3).to(dtype))


@dataclass(frozen=True)
class Case:
    """One method on one model under one budget."""

    method: Method
    family: str
    laws: frozenset[str] | None = field(
        default=None, compare=False, kw_only=True
    )  # those to try; None: all that are claimed
    native: bool = field(default=False, kw_only=True)  # steps are one call of the native library

    def tries(self, law: str) -> bool:
        """Whether the law is claimed, and tried on this case."""
        return law in self.method.claims and (self.laws is None or law in self.laws)

    @property
    def id(self) -> str:
        """Readable, and enough to make the case again in another process."""
        return f"{self.method}@{self.family}" + ("+native" if self.native else "")

    @property
    def differs(self) -> bool:
        """Whether its codes may be others than those of its specification: in float32, by the last bit of a product."""
        return self.native and getattr(self.method, "rounds", False)

    @property
    def model(self) -> Attached:
        wide = getattr(self.method, "rounds", False) and not self.native
        return attached(self.family, torch.float64 if wide else torch.float32)

    @property
    def budget(self) -> int | None:
        """A small budget: the stream is several times longer."""
        if not self.method.needs_budget:
            return None
        for entries in (24, 48, 96, 192):
            try:
                self.method.cascades(self.model.geometry, entries)
            except BudgetError:
                continue
            return entries
        raise AssertionError(f"{self.id} takes no budget up to 192 entries")

    @property
    def chunks(self) -> tuple[int | None, ...]:
        """Step sizes, rounded up to the alignment that the method asks for."""
        unit = getattr(self.method, "alignment", 1)
        return tuple(dict.fromkeys(c if c is None else -(-c // unit) * unit for c in CHUNKS))

    @property
    def placements(self) -> tuple[Placement, ...]:
        """What the method composes for each layer under the small budget."""
        return self.method.cascades(self.model.geometry, self.budget)

    @property
    def is_simple(self) -> bool:
        """Whether all layers move token by token; the others cut every step into the same units by construction."""
        return all(c.is_simple for c in self.placements)

    def memory(self, rows: int = 1, entries: int | None = None, naive: bool = False) -> Memory:
        """A fresh memory of the case; `entries` instead of its small budget."""
        budget = None if self.budget is None else entries or self.budget
        return Memory(self.model.geometry, self.method.cascades(self.model.geometry, budget), rows, naive)

    def roomy(self, length: int) -> int | None:
        """The smallest budget with room for a stream of `length`, and for one unit where the memory moves by units."""
        for entries in range(length, 8 * length):
            try:
                found = self.method.cascades(self.model.geometry, entries)
            except BudgetError:
                continue
            units = [b.unit for c in found for b in branches(c) if not b.is_simple]
            if entries >= length + max(units, default=0):
                return entries
        raise AssertionError(f"{self.id} has no budget with room for {length} tokens")

    def lossless(self) -> Case:
        """The case with the method's lossy switch off."""
        off = getattr(self.method, "lossless", None)
        return self if off is None else Case(off(), self.family, native=self.native)

    # -- running ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, memory: Memory, packed: dict[int, Tensor], phase: Phase = Phase.INGEST) -> dict[int, Tensor]:
        """One packed step: tokens [N] by row in, logits [N, V] by row out."""
        spans = [Span(row, len(part)) for row, part in packed.items()]
        if self.native and not memory.naive:
            return self._natively(memory, packed, spans, phase)
        where = None
        if self.model.geometry.is_absolute:
            starts = [memory.length(row) for row in packed]
            where = torch.cat([torch.arange(s, s + len(part)) for s, part in zip(starts, packed.values())])
        with memory.step(spans, phase) as step:
            logits = self.model.run(torch.cat(list(packed.values())), step, where, "all")
        assert logits is not None
        return dict(zip(packed, logits.split([span.count for span in spans])))

    def _natively(
        self, memory: Memory, packed: dict[int, Tensor], spans: list[Span], phase: Phase
    ) -> dict[int, Tensor]:
        steps = _NATIVE.get(memory)
        if steps is None:
            found, why = choose(self.model, memory, "native")
            assert found is not None, why
            steps = _NATIVE[memory] = NativeSteps(found, self.model)
        with memory.step(spans, phase, planned=steps.planned) as step:
            logits = steps.run(step, spans, torch.cat(list(packed.values())), "all")
        assert logits is not None
        return dict(zip(packed, logits.split([span.count for span in spans])))

    def feed(self, memory: Memory, tokens: Tensor, chunk: int | None = None, row: int = 0) -> Tensor:
        """Tokens of one row in steps of `chunk`: logits [N, V]."""
        return torch.cat([self.step(memory, {row: part})[row] for part in tokens.split(chunk or len(tokens))])


def branches(placement: Placement) -> list[Cascade]:
    """The cascades of a layer."""
    return [c for _, c in placement.branches] if isinstance(placement, Heads) else [placement]


def same(got: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> float:
    """Assert that logits are the same: equal greedy tokens, and close; returns the difference relative to the bound."""
    scale = max(1.0, float(expected.abs().max()))
    difference = float((got - expected).abs().max()) / scale
    assert difference <= tolerance, f"logits differ by {difference:.2g} of the largest, more than {tolerance:g}"
    assert torch.equal(got.argmax(-1), expected.argmax(-1)), "greedy tokens differ"
    return difference


def variants(method: type[Method]) -> Iterator[Method]:
    """The method with its defaults, then with each other word of its options of a few words."""
    default = method()
    yield default
    for name, kind in typing.get_type_hints(method).items():
        if typing.get_origin(kind) is typing.Literal:
            for word in typing.get_args(kind):
                if word != getattr(default, name, word):
                    yield method(**{name: word})


def supported(case: Case) -> bool:
    """Whether the model can be opened with the method at all."""
    try:
        check_supported(case.model.geometry, case.method, case.budget)
        case.memory()
    except (UnsupportedModel, CompositionError):
        return False
    return True


@cache
def cases() -> Sequence[Case]:
    """All cases: all laws on rotary; of sinks and windows, on every encoding.

    The others are tried on one more encoding (on all, if they move token by token), and with each other word of their
    options, for what may differ there: that the fast form equals its specification, that nothing is lost while
    everything fits, and, token by token, that steps may be cut anywhere.
    """
    found: list[Case] = []
    others = list(ENCODINGS.values())[1:]
    for k, kind in enumerate(registry().values()):
        for i, method in enumerate(variants(kind)):
            simple = all(c.is_simple for c in Case(method, "llama").placements)
            families = list(ENCODINGS.values()) if simple else ["llama", others[k % len(others)]]
            some = families if i == 0 else ["llama", ENCODINGS["alibi"]] if simple else ["llama"]
            for family in some:
                whole = i == 0 and (family == "llama" or kind.name in EVERYWHERE)
                less = {"exact_when_large", "chunk_invariant"} if simple else {"exact_when_large"}
                tried = None if whole else frozenset(less)
                case = Case(method, family, laws=tried)
                found += [case] if supported(case) else []
                if i == 0 and kind.name in NATIVE and family == "llama" and library.library() is not None:
                    found.append(Case(method, family, laws=NATIVE[kind.name], native=True))
    return tuple(found)


def case_of(name: str) -> Case:
    """The case with an id."""
    return next(case for case in cases() if case.id == name)
