"""infinite-vggt: the first frame, and of all others the entries whose keys are least like the average.

Gao et al., "InfiniteVGGT", a causal transformer of 3D geometry.  Differs from the paper: every layer has the same
budget (the paper shares one out by how diverse a layer's keys are); a frame attends to all of itself before anything of
it can leave; a recent share stays by age, which text needs and frames of geometry do not (recent=0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import normalize

from penstock.memory import Cascade, Place, State, Unit
from penstock.memory.retention import Retained, beside_sinks, coarse
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class Unlike(Retained):
    """The entries whose raw keys have the lowest cosine with the mean of all normalised keys, head by head."""

    def score(self, state: State, unit: Unit, place: Place) -> Tensor:
        key = normalize(state["held"].key.float(), dim=-1)  # [H, T, D]
        return -coarse((key * normalize(key.mean(1, keepdim=True), dim=-1)).sum(-1))


@dataclass(frozen=True)
class InfiniteVGGT(Method):
    """Keeps what is unlike the rest, so that repetition costs nothing; needs no queries.

    The first `frame` tokens are anchors for ever.  `recent` is the share of the budget that stays by age alone (0 is
    the paper).  `frame` is also how many tokens come between two choices.
    """

    name: ClassVar[str] = "infinite-vggt"
    title: ClassVar[str] = "Anchors, and keys unlike the average"
    source: ClassVar[str] = "InfiniteVGGT (AutoLab-SAI-SJTU)"
    differs: ClassVar[str] = "equal budgets for all layers; a frame reads itself whole; a recent share stays"
    slots: ClassVar[tuple[str, ...]] = ("retention", "positions")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    frame: int = 8
    recent: float = 0.25
    positions: Literal["contiguous", "stream"] = "contiguous"

    def cascade(self, budget: int | None) -> Cascade:
        return beside_sinks(
            Unlike, budget, sinks=self.frame, recent=self.recent, unit=self.frame, positions=self.positions
        )
