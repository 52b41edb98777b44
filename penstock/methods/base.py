"""What a method is: a published idea as a composition, with its source, claims and defaults.

A method file defines one frozen dataclass whose fields are its options.  It never imports another method.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, ClassVar

from penstock.core import Budget
from penstock.errors import BudgetError, CompositionError, UnknownName, UsageError
from penstock.memory import Cascade, Geometry, Placement, row_bytes

LAWS = (
    "bounded",
    "grows",
    "exact_when_large",
    "chunk_invariant",
    "causal",
    "rows_independent",
    "resumable",
    "forkable",
    "steady",
    "deterministic",
)


class Method:
    """Base of all methods.  Subclasses are frozen dataclasses; their fields are the options of `--memory NAME:k=v`."""

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    differs: ClassVar[str]  # one line: how this differs from the paper
    slots: ClassVar[tuple[str, ...]] = ()  # which choices of the cascade it makes
    claims: ClassVar[frozenset[str]]
    waived: ClassVar[dict[str, str]] = {}  # law it does not claim -> reason

    def cascade(self, budget: int | None) -> Cascade:
        """The composition for layers without a window of their own; `budget` in entries."""
        raise CompositionError(f"{type(self).__name__} does not say how it is composed: define cascade(budget).")

    @property
    def needs_budget(self) -> bool:
        return "bounded" in self.claims

    def cascades(self, geometry: Geometry, budget: int | None) -> tuple[Placement, ...]:
        """One cascade per layer; a layer with its own sliding window keeps its newest entries only."""
        cascade = self.cascade(budget)
        return tuple(cascade if ly.window is None else cascade.limited_to(ly.window) for ly in geometry.layers)

    def options(self) -> dict[str, Any]:
        """Field values by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def __str__(self) -> str:
        changed = [f"{k}={v}" for k, v in self.options().items() if v != getattr(type(self), k, None)]
        return self.name + (":" + ",".join(changed) if changed else "")

    @classmethod
    def with_options(cls, options: dict[str, str]) -> Method:
        """Make the method from option texts; unknown options and wrong values are refused."""
        hints = typing.get_type_hints(cls)
        known = {f.name: hints[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        values = {}
        for name, text in options.items():
            if name not in known:
                raise UnknownName(f"option of {cls.name}", name, known)
            values[name] = _convert(cls.name, name, text, known[name])
        return cls(**values)


def _convert(method: str, name: str, text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        if text not in choices:
            raise UnknownName(f"value of {method}:{name}", text, choices)
        return text
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        word = {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(
            kind.__name__, "another value"
        )
        raise UsageError(f"option {name} of {method} cannot be {text!r}: give {word}.") from None


def entries_for(method: Method, geometry: Geometry, budget: Budget | None, rate: float | None = None) -> int | None:
    """The budget in entries: bytes are divided by the memory's own formula, seconds need the stream's token rate."""
    if budget is None or not method.needs_budget:
        return None
    if budget.entries is not None:
        return budget.entries
    if budget.seconds is not None:
        if rate is None:
            raise BudgetError("a budget in seconds needs a stream with a rate: give entries (4096) or bytes (64MiB).")
        return max(1, int(budget.seconds * rate))
    assert budget.bytes is not None
    return _entries_in_bytes(method, geometry, budget.bytes)


def _entries_in_bytes(method: Method, geometry: Geometry, size: int) -> int:
    """The most entries whose bytes fit: bisection, since the formula is monotone."""

    def fits(entries: int) -> bool:
        try:
            cost = row_bytes(geometry, method.cascades(geometry, entries))
        except BudgetError:
            return True  # too few entries for the method: certainly not too many bytes
        return cost is not None and cost <= size

    low, high = 0, 1
    while fits(high) and high < 1 << 40:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    try:
        method.cascades(geometry, low)
    except BudgetError as error:
        raise BudgetError(f"{size} bytes are too few for {method.name} on this model: {error}") from None
    return low
