"""window: keep the newest entries.  Sliding-window attention (arXiv:2004.05150) applied to any model.

Differs from the paper: the model need not have been trained with a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from penstock.errors import BudgetError
from penstock.memory import Cascade, Window
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class SlidingWindow(Method):
    """The newest `budget` entries, at their stream positions."""

    name: ClassVar[str] = "window"
    title: ClassVar[str] = "Sliding window"
    source: ClassVar[str] = "arXiv:2004.05150"
    differs: ClassVar[str] = "applied to models that were not trained with a window"
    slots: ClassVar[tuple[str, ...]] = ("segments",)
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    def cascade(self, budget: int | None) -> Cascade:
        if budget is None:
            raise BudgetError("window needs a budget: give entries (4096) or bytes (64MiB).")
        return Cascade((Window(budget),))
