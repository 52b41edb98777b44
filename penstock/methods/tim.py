"""tim: subtasks that are done leave the memory, and what stands behind them is read again.  arXiv:2507.16784

Differs from the paper: spans are told by the caller (session.begin_span, end_span), not by a grammar of the output;
what is not pruned in time slides out of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from penstock.errors import BudgetError
from penstock.memory import Cascade, Sinks, Window
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class Tim(Method):
    """For work in steps: subtasks, their results, and a conclusion that makes them dispensable.

    `session.begin_span()` and `session.end_span()` stand around a list of subtasks; its conclusion comes behind it.
    The newest `stack` lists that are done stay, older ones are pruned: the session is then what it would be without
    them, and its positions never exceed what it holds.  Until something is pruned it is streaming-llm: `sinks` first
    entries and the newest ones.  What the window has let go cannot be pruned any more.
    """

    name: ClassVar[str] = "tim"
    title: ClassVar[str] = "Finished subtasks are pruned"
    source: ClassVar[str] = "arXiv:2507.16784"
    differs: ClassVar[str] = "the caller says where spans begin and end; what is not pruned in time leaves a window"
    slots: ClassVar[tuple[str, ...]] = ("segments", "positions", "pruning")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    stack: int = 2
    sinks: int = 4
    positions: Literal["clamped", "stream"] = "clamped"

    def cascade(self, budget: int | None) -> Cascade:
        if budget is None:
            raise BudgetError("tim needs a budget: give entries (4096) or bytes (64MiB).")
        if budget < self.sinks + 1:
            raise BudgetError(
                f"a budget of {budget} is smaller than {self.sinks} sinks and the newest entry: "
                f"give at least {self.sinks + 1}, or fewer sinks (tim:sinks=N)."
            )
        return Cascade((Sinks(self.sinks), Window(budget - self.sinks)), self.positions)
