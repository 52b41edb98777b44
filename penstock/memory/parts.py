"""What a segment of a general cascade is: a `Part`, and what it is given.

A stream is cut into *units* of `Cascade.unit` tokens, by position alone.  Within a unit new entries wait in a tail that
every later query of the unit reads; all change happens where a unit ends: the tail enters the first part, what it gives
up enters the next.  What a query reads is therefore a function of its position, never of how the stream was cut into
steps, for every part that keeps to two rules: `read` changes nothing, and `admit` is a function of what it is given.

State is immutable: `admit` returns a new state and leaves the old one as it is, so that marks, forks and rollbacks are
references.  A state is a dictionary of tensors, `Entries`, `Vector`s, and stores with `fork()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from penstock.core import Phase
from penstock.errors import CompositionError
from penstock.memory.chooser import Chooser
from penstock.memory.entries import Entries
from penstock.memory.frames import Frame
from penstock.memory.layout import Layer
from penstock.memory.lending import Lent
from penstock.memory.positions import Alibi, Angles, Encoding, Rotary

State = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Place:
    """Where a part works: one layer, some of its key-value heads.  The same for all rows."""

    layer: Layer
    heads: int  # key-value heads here
    group: int  # query heads per key-value head
    dtype: torch.dtype
    device: torch.device
    positions: str  # the cascade's policy
    unit: int
    cap: int  # the largest distance that clamped positions show: entries of the cascade - 1
    placed: bool  # entries carry a place of their own
    label: str  # names the layer and the branch, unique in a memory
    pool: Callable[[], Any]  # the memory's pool of blocks (tiers), made when first asked for

    @property
    def encoding(self) -> Encoding:
        return self.layer.encoding

    def none(self, *, biased: bool = False, turned: bool = False) -> Entries:
        """No entries, of the right shape."""
        return Entries.empty(
            self.heads, self.layer.key_width, self.layer.value_width, self.dtype, self.device, placed=self.placed,
            biased=biased, turned=turned,
        )  # fmt: skip

    def entry_bytes(self, *, biased: bool = False) -> int:
        """Bytes of one entry over the heads here: key, value, index seen, kind, and what else it carries."""
        wide = (self.layer.key_width + self.layer.value_width) * self.dtype.itemsize
        return self.heads * (wide + 8 + 1 + (8 if self.placed else 0) + (4 if biased else 0))

    def angles(self, positions: Tensor) -> Angles:
        """Rotations to positions [...]."""
        assert isinstance(self.encoding, Rotary)
        return self.encoding.angles(positions.cpu(), self.device)

    def turn(self, key: Tensor, positions: Tensor) -> Tensor:
        """Rotate raw keys [H, T, D] to positions [H, T]; nothing to do where positions are not in the keys."""
        if not isinstance(self.encoding, Rotary) or not key.shape[-2]:
            return key
        return self.encoding.rotate(key, self.angles(positions))

    def turned(self, entries: Entries) -> Entries:
        """The same entries with keys rotated to where they stand in the stream."""
        return self._moved(entries, entries.at, True) if not entries.turned else entries

    def raw(self, entries: Entries) -> Entries:
        """The same entries with raw keys (turning back rounds once more)."""
        return self._moved(entries, -entries.at, False) if entries.turned else entries

    def _moved(self, entries: Entries, by: Tensor, turned: bool) -> Entries:
        return Entries(
            self.turn(entries.key, by), entries.value, entries.seen, entries.kind, entries.place, entries.bias, turned
        )


@dataclass(frozen=True)
class Unit:
    """What happened in the unit that ends: its queries, for parts that asked for them."""

    start: int  # index of its first token in the stream
    count: int
    phase: Phase
    query: Tensor | None  # [Hq, U, D] raw
    at: Tensor  # [U] int64, positions of the queries in the stream frame
    lse: Tensor | None  # [Hq, U] float32, of all that each query read; for parts that need mass
    kind: Tensor | None = None  # [U] uint8, of the queries
    frame: Frame | None = None  # where the queries and the part's entries stood; for parts that need queries
    scale: float = 1.0  # of the scores that `lse` sums up
    softcap: float | None = None
    chooser: Chooser | None = None  # as in Query


@dataclass
class Query:
    """Queries of one layer: C consecutive tokens of one row, within one unit."""

    raw: Tensor  # [Hq, C, D]
    seen: Tensor  # [C] int64, index in the stream
    at: Tensor  # [C] int64, position in the stream frame (differs from seen where kinds count apart)
    kind: Tensor  # [C] uint8
    phase: Phase
    place: Place
    memo: dict[Any, Angles] = field(default_factory=dict)  # shared by all layers of a step
    wanted: range | None = None  # indices seen that an oracle fetches; comparisons only
    chooser: Chooser | None = None  # who chooses among blocks, if not PyTorch

    def __len__(self) -> int:
        return self.raw.shape[1]

    def to(self, positions: Tensor) -> Tensor:
        """The queries rotated to positions [C]."""
        rotary = self.place.encoding
        if not isinstance(rotary, Rotary):
            return self.raw
        key = (id(rotary), *positions.tolist())
        if key not in self.memo:
            self.memo[key] = rotary.angles(positions, self.place.device)
        return rotary.rotate(self.raw, self.memo[key])

    def by_head(self, x: Tensor) -> Tensor:
        """Query heads [Hq, ...] as [H, group, ...]."""
        return x.reshape(self.place.heads, self.place.group, *x.shape[1:])


@dataclass(frozen=True)
class Readable:
    """Keys and values that some queries read, with all that decides their scores.

    The frame says where the queries stand; `position` where the keys do.  `mask` hides (False) keys from queries.  If
    `causal`, the last keys are those of the queries, in order, and no query sees a key behind its own.
    """

    key: Tensor  # [H, T, D], raw unless turned
    value: Tensor  # [H, T, Dv]
    position: Tensor  # [H, T] int64, in the frame
    query_at: Tensor  # [queries] int64, in the frame
    turned: bool = False  # keys are already rotated to `position`
    kind: Tensor | None = None  # [H, T], needed where some kinds are blind to others
    bias: Tensor | None = None  # [H, T] float32, added to the scaled score
    mask: Tensor | None = None  # [queries, T], [H, queries, T] or [Hq, queries, T] bool
    queries: tuple[int, int | None] = (0, None)  # from, to: the step's other queries do not read this
    causal: bool = False

    @staticmethod
    def of(entries: Entries, frame: Frame, **more: Any) -> Readable:
        """Entries as a frame numbers them."""
        return Readable(
            entries.key,
            entries.value,
            frame.of(entries),
            frame.query,
            entries.turned,
            entries.kind,
            entries.bias,
            **more,
        )


@dataclass(frozen=True)
class Packed:
    """Entries as they are stored, in codes: for readers that know the codes; others read what `plain` decodes."""

    keys: Any  # coded.Groups: raw keys
    values: Any
    first: int  # position of the first entry; the others follow it
    query_at: Tensor  # [queries] int64
    plain: Callable[[], Iterator[Readable]]


@dataclass(frozen=True)
class Stored:
    """Raw entries in blocks of a store: for readers that read them where they lie; others read what `plain` copies."""

    lend: Callable[[], AbstractContextManager[Lent | None]]
    first: int | None  # position of the first entry, the others follow it; None: all stand at 0
    query_at: Tensor  # [queries] int64
    plain: Callable[[], Iterator[Readable]]


@dataclass(frozen=True)
class Additive:
    """A result with a normaliser of its own, added after the merge (linear memories): out [Hq, C, Dv]."""

    out: Tensor


Offer = Readable | Packed | Stored | Additive


class Part(ABC):
    """A segment that can stand in any cascade.  Subclasses are frozen dataclasses: declarations, compared by value.

    The default part keeps `Entries` under the name "held" and lets every query read all of them.
    """

    needs_queries: ClassVar[bool] = False  # `Unit.query` in admit
    needs_mass: ClassVar[bool] = False  # `Unit.lse` too
    role: ClassVar[str] = "far"  # how clamped positions treat it: sinks, window or far (frames.py)
    biased: ClassVar[bool] = False  # its entries carry a bias
    dynamic: ClassVar[bool] = False  # what it reads is chosen per query: `span` instead of static entries
    aligned: ClassVar[int] = 1  # its admit wants units that are multiples of this

    # -- what a declaration says --------------------------------------------------------------------------------

    @property
    @abstractmethod
    def entries(self) -> int | None:
        """How many entries a query may read here; None when that grows."""

    def nbytes(self, place: Place) -> int | None:
        """Bytes of a full state on the device, side tables included; None when it grows."""
        return None if self.entries is None else self.entries * place.entry_bytes(biased=self.biased)

    def least(self, place: Place) -> tuple[int, int]:
        """Bytes of main memory and of disk (`Cascade.tiers`) without which it cannot work."""
        return 0, 0

    def check(self, place: Place) -> None:  # noqa: B027  # most parts work everywhere
        """Raise CompositionError when the part cannot work there (no rotary keys, too few heads, ...)."""

    # -- what it does -------------------------------------------------------------------------------------------

    def is_turned(self, place: Place) -> bool:
        """Whether it holds keys rotated to their place in the stream (faster to read) or raw ones."""
        return self.role != "far" and place.positions != "contiguous"

    def begin(self, place: Place) -> State:
        """The state before the first entry."""
        return {"held": place.none(biased=self.biased, turned=self.is_turned(place))}

    @abstractmethod
    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """Take raw entries in stream order; return the new state and what it gives up (raw, oldest first)."""

    def read(self, state: State, query: Query, frame: Frame, place: Place) -> Iterator[Offer]:
        """What the queries read."""
        held: Entries = state["held"]
        if len(held):
            yield Readable.of(held, frame)

    def held(self, state: State) -> Tensor | None:
        """[H, T] int64: indices seen of the static entries, for numbering and views; None if there are none."""
        entries = state.get("held")
        return entries.seen if isinstance(entries, Entries) else None

    def span(self, state: State) -> tuple[int, int, int]:
        """Of a dynamic part: (entries that a query reads, oldest and newest index seen among all it could read)."""
        return 0, 0, 0

    def remembered(self, state: State) -> Tensor:
        """[n] int64, sorted: indices seen that some head still holds."""
        held = self.held(state)
        return torch.zeros(0, dtype=torch.int64) if held is None else held.unique()

    def shift(self, state: State, by: int, place: Place) -> State:
        """The state as if `by` more tokens had passed long ago (tests and benchmarks at far positions)."""
        return {
            name: _shifted(value, by, place) if isinstance(value, Entries) else value for name, value in state.items()
        }

    def settle(self, arriving: Entries, place: Place) -> Entries:
        """Arriving entries in the form that the part holds."""
        entries = place.turned(arriving) if self.is_turned(place) else place.raw(arriving)
        return entries.with_bias() if self.biased else entries


def _shifted(entries: Entries, by: int, place: Place) -> Entries:
    moved = place.raw(entries)
    moved = Entries(
        moved.key, moved.value, moved.seen + by, moved.kind, None if moved.place is None else moved.place + by,
        moved.bias,
    )  # fmt: skip
    return place.turned(moved) if entries.turned else moved


def alibi_bias(place: Place, query_at: Tensor, position: Tensor) -> Tensor | None:
    """[Hq, C, T] float32 where positions are a bias; key positions [H, T]."""
    encoding = place.encoding
    if not isinstance(encoding, Alibi):
        return None
    distance = (position[:, None, :] - query_at[None, :, None]).to(torch.float32)  # [H, C, T]
    slopes = encoding.slopes.reshape(place.heads, place.group, 1, 1)
    return (slopes * distance[:, None]).flatten(0, 1).to(place.device)


def refuse_alibi(place: Place, name: str) -> None:
    """For parts that compare raw keys, which do not tell positions under ALiBi."""
    if isinstance(place.encoding, Alibi):
        raise CompositionError(f"{name} needs keys that carry positions: use a rotary model, or memory=streaming-llm.")


__all__ = [
    "Additive",
    "Frame",
    "Offer",
    "Packed",
    "Part",
    "Place",
    "Query",
    "Readable",
    "State",
    "Unit",
    "alibi_bias",
    "refuse_alibi",
]
