"""quickvideo: of each group of tokens only those whose keys have the lowest norm stay.  arXiv:2505.16175

Differs from the paper: the prefill half alone (decoding is the source's affair); its cache grows with the groups, here
the oldest entries leave when the budget is full.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from penstock.core import Kind
from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Entries, Part, Place, Sinks, State, Unit, Window
from penstock.memory.retention import best, check_unit, coarse
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class Thinned(Part):
    """Holds nothing: lets through what is not of `kind`, and of the others the `top` with the lowest key norms.

    The norm is that of the keys of all heads together, so that all heads keep the same tokens.  `top` is a number and a
    share of what came; the smaller one holds, and at least one token stays.
    """

    top: int
    share: float
    kind: int | None  # None: any

    @property
    def entries(self) -> int:
        return 0

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """The rest is gone."""
        pruned = torch.ones(len(arriving), dtype=torch.bool)
        if self.kind is not None:
            pruned = arriving.kind[0] == self.kind
        count = int(pruned.sum())
        top = max(1, min(self.top, int(count * self.share)))
        if count <= top:
            return state, arriving
        score = -coarse(arriving.key.float().square().sum((0, 2)).sqrt())  # [T]
        index = pruned.nonzero()[:, 0]
        stays = ~pruned
        stays[index[best(score.cpu()[None, index], top)[0]]] = True
        return state, arriving.take(stays.nonzero()[:, 0])


@dataclass(frozen=True)
class QuickVideo(Method):
    """Thins vision as it comes, before any question, from keys alone.

    After each `group` of tokens the smaller of `top_k` tokens and a share `top_p` of its vision stays; text is never
    thinned, unless `kinds` is `all`.  What is left fills a window beside `sinks` first entries, so the window reaches
    1 / top_p times further back.  Positions are those of the stream, or `contiguous`.
    """

    name: ClassVar[str] = "quickvideo"
    title: ClassVar[str] = "Groups thinned by key norm as they come"
    source: ClassVar[str] = "arXiv:2505.16175"
    differs: ClassVar[str] = "selection alone, without the decoder; the oldest leave, so that memory is bounded"
    slots: ClassVar[tuple[str, ...]] = ("retention", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    sinks: int = 4
    group: int = 16
    top_k: int = 64
    top_p: float = 0.25
    kinds: Literal["vision", "all"] = "vision"
    positions: Literal["stream", "contiguous"] = "stream"

    def lossless(self) -> QuickVideo:
        """Every token of a group stays."""
        return replace(self, top_k=self.group, top_p=1.0)

    def cascade(self, budget: int | None) -> Cascade:
        check_unit(self.group)
        if not 0 < self.top_p <= 1 or self.top_k < 1:
            raise UsageError(
                f"quickvideo keeps at least one token and at most all, not top_k={self.top_k}, top_p={self.top_p}: "
                "give top_k of 1 or more and top_p up to 1."
            )
        if budget is None:
            raise BudgetError("quickvideo needs a budget: give entries (4096) or bytes (64MiB).")
        window = budget - self.sinks - self.group
        if window < 1 or self.sinks < 0:
            raise BudgetError(
                f"a budget of {budget} has no room beside {self.sinks} sinks and a group of {self.group} tokens: "
                f"give at least {max(self.sinks, 0) + self.group + 1}, or smaller groups (quickvideo:group=N)."
            )
        thinned = Thinned(self.top_k, self.top_p, Kind.VISION if self.kinds == "vision" else None)
        return Cascade((Sinks(self.sinks), thinned, Window(window)), self.positions, self.group)
