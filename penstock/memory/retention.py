"""Retention by score: of everything that came, each key-value head keeps the entries with the highest scores.

    arriving ──► [ retained, by score | recent, by age ] ──► given up: the lowest scores

A rule is a subclass of `Retained` that says one thing, the score.  Scores are recomputed when room is needed, or, where
the past counts, carried: a number per entry beside "held".  Every head keeps equally many; of equal scores the newer
entry stays.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from penstock.errors import BudgetError, CompositionError
from penstock.memory.cascade import Cascade
from penstock.memory.entries import Entries
from penstock.memory.parts import Part, Place, State, Unit, alibi_bias
from penstock.memory.segments import Sinks

_STEPS = 1 << 10  # scores that differ by less than this part of themselves count as equal


@dataclass(frozen=True)
class Retained(Part):
    """Up to `size` entries: the newest `recent`, and of the others those with the highest scores.

    When more than `size` have come, `after` stay (None: `size`), so that room is made for several units at once.  Keys
    are held raw: scores compare what keys say, wherever they stand.
    """

    role: ClassVar[str] = "window"
    carried: ClassVar[bool] = False  # the state has a "score" per entry

    size: int
    recent: int = 0
    after: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.recent <= self.stays <= self.size or self.size < 1:
            raise BudgetError(
                f"of {self.size} entries {self.stays} cannot stay with {self.recent} recent ones among them: "
                "raise the budget, or keep fewer recent entries."
            )

    @property
    def stays(self) -> int:
        """How many entries are left when room was made."""
        return self.size if self.after is None else self.after

    @property
    def entries(self) -> int:
        return self.size

    def is_turned(self, place: Place) -> bool:
        """Never: keys are compared raw."""
        return False

    def nbytes(self, place: Place) -> int:
        """Entries, and the carried scores."""
        return self.size * (place.entry_bytes() + (4 * place.heads if self.carried else 0))

    def begin(self, place: Place) -> State:
        """Nothing held."""
        state = dict(super().begin(place))
        if self.carried:
            state["score"] = torch.zeros(place.heads, 0, device=place.device)
        return state

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """Take all, then make room."""
        both = Entries.join([state["held"], place.raw(arriving)])
        state = {**state, **self.observe(state, both, unit, place), "held": both}
        if len(both) <= self.size:
            return state, None
        index = self.chosen(state, unit, place)
        gone = torch.ones(both.seen.shape, dtype=torch.bool)
        gone.scatter_(1, index.cpu(), torch.zeros(index.shape, dtype=torch.bool))
        left = {**state, "held": both.take(index)}
        if self.carried:
            left["score"] = state["score"].gather(1, index.to(state["score"].device))
        return left, both.where(gone)

    # -- what a rule says -----------------------------------------------------------------------------------------

    def observe(self, state: State, both: Entries, unit: Unit, place: Place) -> State:
        """What changes in the state with a unit, besides "held"; a carried score has one number per entry of `both`."""
        return {}

    @abstractmethod
    def score(self, state: State, unit: Unit, place: Place) -> Tensor:
        """[H, T]: the highest stay.  Computed from floats, it goes through `coarse`."""

    def chosen(self, state: State, unit: Unit, place: Place) -> Tensor:
        """[H, stays] int64, ascending: which entries stay."""
        return best(self.score(state, unit, place), self.stays, self.recent)


@dataclass(frozen=True)
class LowestNorms(Retained):
    """The keys with the lowest norm (arXiv:2406.11430)."""

    def score(self, state: State, unit: Unit, place: Place) -> Tensor:
        return -coarse(state["held"].key.float().norm(dim=-1))


@dataclass(frozen=True)
class Sample(Retained):
    """A uniform sample of everything older than the recent entries, the same in all heads and layers.

    Each index draws a number once, from the seed; the highest stay.  So every index is kept with equal chance, however
    long ago it was seen.
    """

    seed: int = 0

    def score(self, state: State, unit: Unit, place: Place) -> Tensor:
        return drawn(state["held"].seen, self.seed)


@dataclass(frozen=True)
class HeavyHitters(Retained):
    """The entries that all queries since their arrival gave the most attention, summed over the heads of a group.

    `decay` weakens what earlier units gave; 1 is the sum of arXiv:2306.14048.
    """

    needs_queries: ClassVar[bool] = True
    needs_mass: ClassVar[bool] = True
    carried: ClassVar[bool] = True

    decay: float = 1.0

    def observe(self, state: State, both: Entries, unit: Unit, place: Place) -> State:
        """Add what the unit's queries gave."""
        given = attention(both, unit, place).sum(1)  # [Hq, T]
        given = given.reshape(place.heads, place.group, -1).sum(1)
        past = state["score"] * self.decay
        return {"score": torch.cat([past + given[:, : past.shape[1]], given[:, past.shape[1] :]], dim=1)}

    def score(self, state: State, unit: Unit, place: Place) -> Tensor:
        return coarse(state["score"])


# -- scores -----------------------------------------------------------------------------------------------------------


def coarse(score: Tensor) -> Tensor:
    """Scores with the last bits taken off.

    Equal tokens have equal keys up to the rounding of the step that computed them.  Without this, how a stream was cut
    into steps would decide which of the two stays.
    """
    mantissa, exponent = torch.frexp(score.float())
    return torch.ldexp((mantissa * _STEPS).round_() / _STEPS, exponent)


def drawn(seen: Tensor, seed: int) -> Tensor:
    """A number in [0, 1) for each index, in float64: a mixing hash of index and seed."""

    def mixed(x: Tensor, by: int, times: int) -> Tensor:
        # A shift of int64 copies the sign: take it off.
        return (x ^ ((x >> by) & ((1 << (64 - by)) - 1))) * _signed(times)

    x = seen + _signed(seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019)
    x = mixed(mixed(x, 30, 0xBF58476D1CE4E5B9), 27, 0x94D049BB133111EB)
    x = x ^ ((x >> 31) & ((1 << 33) - 1))
    return ((x >> 11) & ((1 << 53) - 1)).double() / (1 << 53)


def _signed(number: int) -> int:
    number %= 1 << 64
    return number - (1 << 64) if number >> 63 else number


def best(score: Tensor, count: int, recent: int = 0) -> Tensor:
    """[H, count] int64, ascending: the last `recent` columns of score [H, T] and the highest others, newer first."""
    total = score.shape[1]
    if recent:
        score = torch.cat([score[:, : total - recent], torch.full_like(score[:, total - recent :], torch.inf)], dim=1)
    order = torch.argsort(score.flip(1), dim=1, descending=True, stable=True)
    return (total - 1 - order[:, :count]).sort(dim=1).values


def stood(both: Entries, unit: Unit) -> Tensor:
    """[H, T] int64: where entries stood in the frame of the unit's queries: what the part held, then what arrives.

    What arrives is the unit's own, or was in a window right before it, so it stands where it was seen.
    """
    assert unit.frame is not None
    if unit.frame.policy == "stream":
        return both.at
    known = unit.frame.position if unit.frame.position is not None else both.seen[:, :0]
    newer = both.seen[:, known.shape[1] :] - unit.start + unit.frame.query[0]
    return torch.cat([known, newer], dim=1)


def attention(both: Entries, unit: Unit, place: Place) -> Tensor:
    """[Hq, U, T] float32: the share of its attention that each query of the unit gave to each entry of `both`."""
    assert unit.query is not None
    assert unit.lse is not None
    assert unit.frame is not None
    position = stood(both, unit)
    key = place.turn(both.key, position).float()  # [H, T, D]
    query = place.turn(unit.query, unit.frame.query).float()
    grouped = query.reshape(place.heads, -1, query.shape[-1])  # [H, group * U, D]
    score = torch.matmul(grouped, key.transpose(-1, -2)).mul_(unit.scale)
    if unit.softcap is not None:
        score = score.div_(unit.softcap).tanh_().mul_(unit.softcap)
    score = score.reshape(query.shape[0], unit.count, -1)
    bias = alibi_bias(place, unit.frame.query, position)
    if bias is not None:
        score += bias
    asked = torch.arange(unit.start, unit.start + unit.count)
    unseen = both.seen[:, None, :] > asked[:, None]  # [H, U, T]
    score = score.sub_(unit.lse[..., None]).exp_()
    by_head = score.view(place.heads, place.group, unit.count, -1)
    return by_head.masked_fill_(unseen[:, None].to(score.device), 0.0).flatten(0, 1)


# -- compositions -----------------------------------------------------------------------------------------------------


def check_unit(unit: int) -> None:
    """Raise CompositionError unless a unit is a power of two from 1 to 64."""
    if unit not in (1, 2, 4, 8, 16, 32, 64):
        raise CompositionError(f"a unit of {unit} tokens is not possible: choose a power of two up to 64.")


def beside_sinks(
    make: Callable[[int, int], Part], budget: int | None, *, sinks: int, recent: float, unit: int, positions: str
) -> Cascade:
    """Sinks, and `make(size, recent)` with what is left of the budget; `recent` is a share of the budget."""
    check_unit(unit)
    if budget is None:
        raise BudgetError("retention by score needs a budget: give entries (4096) or bytes (64MiB).")
    size = budget - sinks - unit
    if sinks < 0 or size < 1:
        raise BudgetError(
            f"a budget of {budget} has no room beside {sinks} sinks and a unit of {unit} tokens: "
            f"give at least {max(sinks, 0) + unit + 1}, or make sinks and unit smaller."
        )
    newest = min(size, max(0, int(recent * budget) - unit))
    return Cascade((Sinks(sinks), make(size, newest)), positions, unit)


__all__ = [
    "HeavyHitters",
    "LowestNorms",
    "Retained",
    "Sample",
    "attention",
    "beside_sinks",
    "best",
    "check_unit",
    "coarse",
    "drawn",
    "stood",
]
