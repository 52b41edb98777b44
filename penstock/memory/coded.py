"""A window whose older entries are stored through codecs.

    arriving ──► fresh (full precision) ──► group | group | ... | group ──► given up, the oldest group first
                 at most `fresh` entries     `groups` of `group` entries each, coded

Entries are consecutive tokens, so their indices follow from that of the first fresh one and are not stored.  Keys are
coded raw: before the rotation their large channels stand still, and one scale per channel fits them.  They are decoded
and rotated piece by piece while they are read, so that a step never holds them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from penstock.errors import BudgetError, CompositionError
from penstock.memory.cascade import Cascade
from penstock.memory.codec import Codec, Floats, Piece
from penstock.memory.entries import Entries
from penstock.memory.frames import Frame
from penstock.memory.parts import Offer, Packed, Part, Place, Query, Readable, State, Unit
from penstock.memory.positions import Angles, Rotary
from penstock.memory.segments import Sinks

_AT_ONCE = 256  # entries that are decoded at once, rounded to whole groups


@dataclass(frozen=True)
class Groups:
    """Coded groups, oldest first; immutable, and shared by all states that hold them."""

    codec: Codec
    heads: int
    size: int  # entries per group
    width: int
    pieces: tuple[Piece, ...] = ()

    def __len__(self) -> int:
        return len(self.pieces)

    def append(self, x: Tensor) -> Groups:
        """One group more: x [H, size, D]."""
        like = self.pieces[0] if self.pieces else None
        return self._with((*self.pieces, self.codec.encode(x, like)))

    def cut(self, start: int, stop: int | None = None) -> Groups:
        """Groups [start, stop)."""
        return self._with(self.pieces[start:stop])

    def decode(self, dtype: torch.dtype) -> Tensor:
        """[H, len * size, D]."""
        return self.codec.decode(self.codec.join(*self.pieces), dtype)

    def tensors(self) -> Iterator[Tensor]:
        """All storage."""
        for piece in self.pieces:
            yield from piece.values()

    def save(self) -> Piece:
        """Tensors by name, all groups in one piece."""
        return self.codec.join(*self.pieces) if self.pieces else self.codec.empty(self.heads, 0, self.width)

    def load(self, saved: Mapping[str, Tensor]) -> Groups:
        """The inverse of `save`; raise CompositionError when the tensors are not whole groups of this codec."""
        fields = self.codec.fields(self.heads, self.size, self.width)
        name, field = next((n, f) for n, f in fields.items() if f.tokens)
        found = saved.get(name)
        count = 0 if found is None or found.dim() < 2 else found.shape[1] // field.shape[1]
        for name, field in self.codec.fields(self.heads, count * self.size, self.width).items():
            found = saved.get(name)
            if found is None or found.dtype != field.dtype or tuple(found.shape) != field.shape:
                raise CompositionError(
                    f"the saved row does not fit this memory, its coded {name} are not {field.dtype} "
                    f"{list(field.shape)}: use the same model, method and budget."
                )
        whole = {name: saved[name] for name in fields}
        cuts = [self.codec.cut(whole, i * self.size, (i + 1) * self.size) for i in range(count)]
        return self._with(tuple(cuts))

    def _with(self, pieces: tuple[Piece, ...]) -> Groups:
        return Groups(self.codec, self.heads, self.size, self.width, pieces)


@dataclass(frozen=True)
class Coded(Part):
    """The newest entries: up to `fresh` as they are, `groups` of `group` entries through codecs, keys raw.

    Whenever more than `fresh` entries are in full precision, the oldest `group` of them are coded; when there are more
    than `groups` of these, the oldest is given up.  A codec of None stores what came, as it is.

    It takes consecutive tokens, in units after which at most `fresh` or at least `group` entries are in full precision:
    `coded_window` chooses such numbers.
    """

    role: ClassVar[str] = "window"

    keys: Codec | None
    values: Codec | None
    group: int
    groups: int
    fresh: int

    def __post_init__(self) -> None:
        if self.groups < 1 or self.group < 1:
            raise BudgetError(f"{self.groups} groups of {self.group} entries hold nothing: raise the budget.")
        for codec in (self.keys, self.values):
            if codec is not None:
                codec.check_count(self.group)

    @property
    def entries(self) -> int:
        return self.fresh + self.groups * self.group

    def codecs(self, place: Place) -> tuple[tuple[Codec, int], tuple[Codec, int]]:
        """Of keys and of values, with their widths."""
        plain, layer = Floats(place.dtype), place.layer
        return (self.keys or plain, layer.key_width), (self.values or plain, layer.value_width)

    def check(self, place: Place) -> None:
        for codec, width in self.codecs(place):
            codec.fields(place.heads, self.group, width)
        if place.placed:
            raise CompositionError("coded entries have no place of their own: let all kinds of token count together.")

    def nbytes(self, place: Place) -> int:
        heads, wide, total = place.heads, 0, 8
        for codec, width in self.codecs(place):
            total += codec.nbytes(heads, self.groups * self.group, width)
            wide += width
        return total + self.fresh * heads * wide * place.dtype.itemsize

    def is_turned(self, place: Place) -> bool:
        return False

    def begin(self, place: Place) -> State:
        none = place.none()
        keys, values = (Groups(codec, place.heads, self.group, width) for codec, width in self.codecs(place))
        return {
            "keys": keys,
            "values": values,
            "key": none.key,
            "value": none.value,
            "next": torch.zeros(1, dtype=torch.int64),  # index seen of the entry that comes next
        }

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """The oldest fresh ones are coded, the oldest coded ones leave."""
        arriving = place.raw(arriving)
        first, count = int(arriving.seen[0, 0]), len(arriving)
        starts = not state["key"].shape[1] and not len(state["keys"])
        if arriving.bias is not None or not bool((arriving.seen == torch.arange(first, first + count)).all()):
            raise CompositionError("Coded takes consecutive entries without a bias: put it after sinks or windows.")
        if not starts and first != int(state["next"]):
            raise CompositionError("Coded takes consecutive entries: put it after sinks or windows.")
        key, value = torch.cat((state["key"], arriving.key), 1), torch.cat((state["value"], arriving.value), 1)
        keys, values = state["keys"], state["values"]
        while key.shape[1] > self.fresh:
            if key.shape[1] < self.group:
                raise CompositionError(
                    f"{key.shape[1]} entries are neither {self.fresh} to keep nor {self.group} to code: "
                    "compose with coded_window."
                )
            keys, values = keys.append(key[:, : self.group]), values.append(value[:, : self.group])
            key, value = key[:, self.group :], value[:, self.group :]
        after: dict[str, object] = {"key": key.clone(), "value": value.clone(), "next": torch.tensor([first + count])}
        excess = len(keys) - self.groups
        left = None
        if excess > 0:
            oldest = first + count - key.shape[1] - len(keys) * self.group
            left = self._entries(keys.cut(0, excess), values.cut(0, excess), oldest, place)
            keys, values = keys.cut(excess), values.cut(excess)
        return {**after, "keys": keys, "values": values}, left

    def _entries(self, keys: Groups, values: Groups, oldest: int, place: Place) -> Entries:
        """Decoded raw entries; of what kind they were is forgotten."""
        seen = torch.arange(oldest, oldest + len(keys) * self.group).expand(place.heads, -1)
        kind = torch.zeros(seen.shape, dtype=torch.uint8)
        return Entries(keys.decode(place.dtype), values.decode(place.dtype), seen.clone(), kind)

    def read(self, state: State, query: Query, frame: Frame, place: Place) -> Iterator[Offer]:
        """Coded groups, as they are or some decoded at a time, then the fresh entries."""
        keys, values, seen = state["keys"], state["values"], self._seen(state)
        if not len(seen):
            return
        at = seen.expand(place.heads, -1) if frame.position is None else frame.position

        def readable(key: Tensor, value: Tensor, start: int, stop: int) -> Readable:
            angles = _angles(query, at[0, start:stop], place)
            if angles is not None:
                assert isinstance(place.encoding, Rotary)
                key = place.encoding.rotate(key, angles)
            return Readable(key, value, at[:, start:stop], frame.query, turned=True)

        def decoded() -> Iterator[Readable]:
            step = max(1, _AT_ONCE // self.group)
            for i in range(0, len(keys), step):
                start, stop = i * self.group, min(i + step, len(keys)) * self.group
                key = keys.cut(i, i + step).decode(place.dtype)
                yield readable(key, values.cut(i, i + step).decode(place.dtype), start, stop)

        if len(keys) and frame.position is None:
            yield Packed(keys, values, int(seen[0]), frame.query, decoded)
        else:
            yield from decoded()
        if state["key"].shape[1]:
            yield readable(state["key"], state["value"], len(keys) * self.group, len(seen))

    def held(self, state: State) -> Tensor | None:
        return self._seen(state).expand(state["key"].shape[0], -1)

    def shift(self, state: State, by: int, place: Place) -> State:
        """Nothing but the index is in stream positions."""
        return {**state, "next": state["next"] + by} if len(self._seen(state)) else state

    def _seen(self, state: State) -> Tensor:
        """[n] int64: indices of all entries here."""
        end = int(state["next"])
        return torch.arange(end - state["key"].shape[1] - len(state["keys"]) * self.group, end)


def _angles(query: Query, at: Tensor, place: Place) -> Angles | None:
    """Rotations to consecutive positions, made once for all layers of a step."""
    if not isinstance(place.encoding, Rotary):
        return None
    name = ("coded", id(place.encoding), int(at[0]), len(at))
    if name not in query.memo:
        query.memo[name] = place.angles(at)
    return query.memo[name]


def coded_window(
    budget: int | None, sinks: int, full: int, codecs: Callable[[int], tuple[Codec, Codec]] | None,
    positions: str = "clamped",
) -> Cascade:  # fmt: skip
    """Sinks and a window, `budget` entries in all, of which at most `full` (or half of a small budget) are not coded.

    `codecs(group)` gives the codecs of keys and values for groups of so many tokens; None stores all as it came.  The
    stream is cut into units of 16 tokens, 8 or 4 under a small budget.  Just before a coding the entries in full
    precision are the sinks, the rest of the units that begin with them, and a group:

        full = ceil(sinks / unit) * unit + group
    """
    if budget is None:
        raise BudgetError("a coded window needs a budget: give entries (4096) or bytes (64MiB).")
    if budget <= sinks:
        raise BudgetError(f"{budget} entries are too few for {sinks} sinks and a window: give {sinks + 1} or more.")
    full = min(full, budget // 2)
    for unit in (16, 8, 4):
        head = -(-sinks // unit) * unit
        group = (full - head) // unit * unit
        if group >= (4 if unit == 4 else max(1, full // 4)):
            break
    else:
        raise BudgetError(
            f"{sinks} sinks leave nothing to code with {full} of {budget} entries in full precision: raise the budget "
            f"(from {2 * (head + unit)} on), raise full, or keep fewer sinks."
        )
    groups = (budget - head - group) // group
    keys, values = codecs(group) if codecs is not None else (None, None)
    coded = Coded(keys, values, group, groups, fresh=head - sinks + group - unit)
    return Cascade((Sinks(sinks), coded) if sinks else (coded,), positions, unit)
