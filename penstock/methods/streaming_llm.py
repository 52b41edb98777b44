"""streaming-llm: keep the first tokens and the newest ones.  arXiv:2309.17453

Differs from the paper: the two-part form, in which window keys are rotated once and only the query is numbered anew, so
that the result does not depend on chunk sizes; a query reads `budget` entries, itself included (the paper: one more).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from penstock.errors import BudgetError
from penstock.memory import Cascade, Sinks, Window
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class StreamingLLM(Method):
    """Attention sinks and a window.

    `sinks` first entries stay for ever, the newest `budget - sinks` slide.  `positions`: `clamped` or `contiguous` are
    the paper's cache-rank numbering in its two forms (equal here), `stream` lets the sinks' distance grow.
    """

    name: ClassVar[str] = "streaming-llm"
    title: ClassVar[str] = "Attention sinks and a window"
    source: ClassVar[str] = "arXiv:2309.17453"
    differs: ClassVar[str] = "two-part form, independent of chunk sizes; the budget includes the query's own entry"
    slots: ClassVar[tuple[str, ...]] = ("segments", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    sinks: int = 4
    positions: Literal["clamped", "contiguous", "stream"] = "clamped"

    def cascade(self, budget: int | None) -> Cascade:
        if budget is None:
            raise BudgetError("streaming-llm needs a budget: give entries (4096) or bytes (64MiB).")
        if budget < self.sinks + 1:
            raise BudgetError(
                f"a budget of {budget} is smaller than {self.sinks} sinks and the newest entry: "
                f"give at least {self.sinks + 1}, or fewer sinks (streaming-llm:sinks=N)."
            )
        return Cascade((Sinks(self.sinks), Window(budget - self.sinks)), self.positions)
