"""What can be done to one row of a group besides stepping: save, load, copy, hold what leaves, put it back.

Saved entries are in stream order, whatever the order in the store, and keep their bits: loading gives back the same
storage, so that a resumed session continues bit-identically.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from penstock.errors import CompositionError, NotRewindable
from penstock.memory.plan import slot_of, window_ranges
from penstock.memory.positions import Rotary
from penstock.memory.ring import RingGroup


def _slots(group: RingGroup, w: int, seen: range) -> Tensor:
    """Slots of the seen indices in ring w, sinks included in the count."""
    size = group.sizes[w]
    base = group.sinks if w == 0 else 0
    index = torch.arange(seen.start, seen.stop)
    return (index if size is None else base + slot_of(index, group.sinks, size)).to(group.device)


def held(group: RingGroup, length: int) -> list[range]:
    """Seen indices in each window of a row with `length` tokens, newest window first."""
    age, out = 0, []
    for size in group.sizes:
        out.append(window_ranges(length, length, group.sinks, age, size)[0])
        age += size or 0
    return out


def save_row(group: RingGroup, row: int, length: int) -> dict[str, Tensor]:
    """Tensors of one row, by name: keys and values of each layer and window in stream order, and the raw sinks."""
    out: dict[str, Tensor] = {}
    sinks = min(length, group.sinks)
    for i, layer in enumerate(group.layers):
        for w, seen in enumerate(held(group, length)):
            both = group.rings[w][i][:, row].index_select(2, _slots(group, w, seen))
            out[f"{layer.index}.{w}.window"] = both.cpu()
        if group.sinks:
            out[f"{layer.index}.sink_keys"] = group.raw_sinks[i][row, :, :sinks].cpu().clone()
            out[f"{layer.index}.sink_values"] = group.rings[0][i][1, row, :, :sinks].cpu().clone()
    return out


def check_state(group: RingGroup, length: int, state: dict[str, Tensor]) -> None:
    """Raise CompositionError when saved tensors are not those of a row of `length` tokens in this group."""
    sinks = min(length, group.sinks)
    needed: dict[str, tuple[int, ...]] = {}
    for layer in group.layers:
        for w, seen in enumerate(held(group, length)):
            needed[f"{layer.index}.{w}.window"] = (2, group.heads, len(seen), group.width)
        if group.sinks:
            needed[f"{layer.index}.sink_keys"] = needed[f"{layer.index}.sink_values"] = (
                group.heads,
                sinks,
                group.width,
            )
    for name, shape in needed.items():
        found = state.get(name)
        if found is None or tuple(found.shape) != shape or found.dtype != group.dtype:
            what = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise CompositionError(
                f"the saved row does not fit this memory, {name} is {what} and should be {group.dtype} {list(shape)}: "
                "use the same model, method and budget."
            )


def load_row(group: RingGroup, row: int, length: int, state: dict[str, Tensor]) -> None:
    """The inverse of save_row; the state was checked before."""
    sinks = min(length, group.sinks)
    if group.planner.grows:
        group._reserve(length)
    clear(group, row, length)
    for i, layer in enumerate(group.layers):
        for w, seen in enumerate(held(group, length)):
            both = state[f"{layer.index}.{w}.window"].to(group.device)
            group.rings[w][i][:, row].index_copy_(2, _slots(group, w, seen), both)
        if group.sinks:
            keys, values = (state[f"{layer.index}.sink_{part}"].to(group.device) for part in ("keys", "values"))
            group.raw_sinks[i][row, :, :sinks] = keys
            group.rings[0][i][:, row, :, :sinks] = torch.stack((keys, values))


def copy_row(source: RingGroup, row: int, target: RingGroup, to: int, length: int) -> None:
    """Make row `to` of `target` equal to a row of `source`."""
    if target.planner.grows:
        target._reserve(length)
    for w, rings in enumerate(source.rings):
        for old, new in zip(rings, target.rings[w]):
            slots = min(old.shape[3], new.shape[3])
            new[:, to, :, :slots] = old[:, row, :, :slots]
    for old, new in zip(source.raw_sinks, target.raw_sinks):
        new[to] = old[row]


def shift_row(group: RingGroup, row: int, length: int, by: int) -> None:
    """Renumber a row as if `by` more tokens had passed long ago: window keys turn by `by` positions, sinks stay.

    For tests and benchmarks that need a session at a far position without reading its way there.
    """
    state = save_row(group, row, length)
    encoding = group.encoding
    if isinstance(encoding, Rotary):
        angles = encoding.angles(torch.tensor([by]))
        for name, both in state.items():
            if name.endswith("window"):
                both[0] = encoding.rotate(both[0], angles)
    # The stream order of the entries is kept; their slots follow from the new indices.
    load_row(group, row, length + by, state)


def clear(group: RingGroup, row: int, length: int) -> None:
    """Zero the slots that hold nothing when the row has `length` tokens.

    Masked slots are read with weight zero, and zero times a NaN of an earlier stream would still be NaN.
    """
    if group.planner.grows:
        return  # reads exactly what was written
    for w, seen in enumerate(held(group, length)):
        empty = len(seen) + (group.sinks if w == 0 else 0)
        for ring in group.rings[w]:
            ring[:, row, :, empty:] = 0


def can_rewind(group: RingGroup, undo: Undo | None, length: int, now: int, reached: int) -> bool:
    """Whether every entry that the windows held at `length` tokens is still in its slot or kept by a mark.

    The row has `now` tokens; a failed step may have overwritten what one to `reached` tokens overwrites.
    """
    for w, (then, last, torn) in enumerate(zip(held(group, length), held(group, now), held(group, reached))):
        gone = range(then.start, min(then.stop, max(last.start, torn.start)))
        kept = [] if undo is None or group.planner.grows else undo.victims[w]
        if sum(seen in gone for seen in kept) < len(gone):
            return False
    return True


@dataclass
class Undo:
    """Entries that left the windows of one row since the oldest open mark, so that a rollback is exact.

    The store is allocated when the mark opens and counts as memory until the mark is closed.
    """

    group: RingGroup
    row: int
    room: int  # entries that may leave per window
    victims: list[list[int]] = field(default_factory=list)  # per window: seen indices held, oldest first
    store: list[list[Tensor]] = field(default_factory=list)  # per window, layer: [2, Hkv, room, D]

    def __post_init__(self) -> None:
        bounded = [] if self.group.planner.grows else self.group.rings
        self.victims = [[] for _ in bounded]
        self.store = [
            [ring.new_zeros(2, ring.shape[2], self.room, ring.shape[4]) for ring in rings] for rings in bounded
        ]

    @property
    def nbytes(self) -> int:
        return sum(t.untyped_storage().nbytes() for rings in self.store for t in rings)

    def check(self, start: int, end: int) -> None:
        """Raise NotRewindable when there is no room for what the step from `start` to `end` evicts."""
        for victims, (_, leaving) in zip(self.victims, self._moves(start, end)):
            if len(victims) + len(leaving) > self.room:
                raise NotRewindable(
                    f"the open mark holds {self.room} entries and the step would evict "
                    f"{len(victims) + len(leaving)}: commit it first, or mark with a larger max_new."
                )

    def before_step(self, start: int, end: int) -> None:
        """Keep what the step from `start` to `end` will overwrite; it was checked before."""
        for w, (victims, (stored, leaving)) in enumerate(zip(self.victims, self._moves(start, end))):
            gone = range(leaving.start, min(leaving.stop, stored.stop))  # what passes straight through was never held
            if gone:
                slots = _slots(self.group, w, gone)
                where = slice(len(victims), len(victims) + len(gone))
                for kept, ring in zip(self.store[w], self.group.rings[w]):
                    kept[:, :, where] = ring[:, self.row].index_select(2, slots)
                victims.extend(gone)

    def _moves(self, start: int, end: int) -> list[tuple[range, range]]:
        """(stored, leaving) seen indices of each window in a step."""
        age, out = 0, []
        for size in self.group.sizes:
            stored, _, leaving = window_ranges(start, end, self.group.sinks, age, size)
            out.append((stored, leaving))
            age += size or 0
        return out

    def close(self) -> None:
        """The last mark is closed."""

    def rollback(self, length: int) -> None:
        """Put back what the windows held when the row had `length` tokens."""
        for w, now in enumerate(held(self.group, length)):
            if w >= len(self.victims):
                break
            victims = self.victims[w]
            back = [i for i, seen in enumerate(victims) if now.start <= seen < now.stop]
            if back:
                run = range(victims[back[0]], victims[back[-1]] + 1)
                slots = _slots(self.group, w, run)
                where = slice(back[0], back[-1] + 1)
                for kept, ring in zip(self.store[w], self.group.rings[w]):
                    ring[:, self.row].index_copy_(2, slots, kept[:, :, where])
            del victims[len([v for v in victims if v < now.start]) :]
