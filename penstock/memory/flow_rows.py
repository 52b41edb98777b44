"""What can be done to one row of a general group besides stepping; the functions of rows.py for `flow.py`.

States are immutable, so a copy is a set of references (stores with sealed blocks are forked, which counts references),
and an undo is the list of states at the borders passed since the oldest open mark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from penstock.errors import CompositionError, NotRewindable
from penstock.memory.entries import Entries
from penstock.memory.flow import KINDS, Branch, FlowGroup, Lane, Tail, renumber
from penstock.memory.parts import State
from penstock.memory.vector import Vector

_ENTRIES = ("key", "value", "seen", "kind", "place", "bias")


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors of a state, a tail, or a lane with its past."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Entries):
        yield from value.columns().values()
    elif isinstance(value, Vector):
        yield value.buffer.data
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_of(part)
    elif isinstance(value, Tail):
        yield from tensors_of([getattr(value, f.name) for f in fields(value)])
    elif isinstance(value, Lane):
        yield from tensors_of([*value.states, value.tail, value.past or []])
        if value.ranks is not None:
            yield from tensors_of(value.ranks.position)
    elif hasattr(value, "tensors"):
        yield from tensors_of(list(value.tensors()))


def stores_of(group: FlowGroup) -> Iterator[Any]:
    """The block stores that lanes of a group hold."""
    for lane in _lanes(group):
        for state in lane.states:
            yield from (v for v in state.values() if hasattr(v, "fork"))


def _lanes(group: FlowGroup) -> Iterator[Lane]:
    for row in group.lanes:
        for layer in row:
            yield from layer


def nbytes(group: FlowGroup) -> int:
    """Bytes of the real storage on the device, each storage once."""
    found: dict[int, int] = {}
    for lane in _lanes(group):
        for tensor in tensors_of(lane):
            data = tensor.untyped_storage()
            found[data.data_ptr()] = data.nbytes()
    found.pop(0, None)
    return sum(found.values())


def row_bytes(group: FlowGroup) -> int | None:
    """The formula: bytes of a full row, tail and numbers included; None if it grows."""
    total = 0
    for branches in group.branches:
        for branch in branches:
            size = branch_bytes(branch)
            if size is None:
                return None
            total += size
    return total


def branch_bytes(branch: Branch) -> int | None:
    """Bytes of one full lane."""
    cascade, place = branch.cascade, branch.place
    sizes = [s.nbytes(place) for s in cascade.segments]
    if any(size is None for size in sizes):
        return None
    total = sum(size for size in sizes if size is not None)
    total += cascade.unit * (place.entry_bytes() + 8)  # the tail, and where its queries stand
    query_heads = place.heads * place.group
    if branch.needs_queries:
        total += cascade.unit * query_heads * place.layer.key_width * place.dtype.itemsize
    if branch.needs_mass:
        total += cascade.unit * query_heads * 4
    if cascade.positions == "contiguous":
        static = sum(s.entries or 0 for s in cascade.segments if not s.dynamic)
        total += static * place.heads * 8
    return total


# -- one row --------------------------------------------------------------------------------------------------------


def _named(group: FlowGroup, row: int) -> Iterator[tuple[str, Branch, int, int]]:
    for i, layer in enumerate(group.layers):
        for b, branch in enumerate(group.branches[i]):
            yield f"{layer.index}.{b}", branch, i, b


def _flat(value: Any, name: str) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, Entries):
        return {f"{name}.{column}": t for column, t in value.columns().items()}
    if isinstance(value, Vector):
        return {name: value.data}
    if hasattr(value, "save"):
        return {f"{name}.{part}": t for part, t in value.save().items()}
    raise TypeError(f"a state cannot hold {type(value).__name__}: use tensors, Entries, Vector or a store")


def save_row(group: FlowGroup, row: int, length: int) -> dict[str, Tensor]:
    """Tensors of one row by name."""
    out: dict[str, Tensor] = {}
    for name, _, i, b in _named(group, row):
        lane = group.lanes[row][i][b]
        for p, state in enumerate(lane.states):
            for key, value in state.items():
                out.update(_flat(value, f"{name}.{p}.{key}"))
        out.update(_flat(lane.tail.entries, f"{name}.tail"))
        out[f"{name}.tail.at"] = lane.tail.at
        if lane.tail.query is not None:
            out[f"{name}.tail.query"] = lane.tail.query
        if lane.tail.lse is not None:
            out[f"{name}.tail.lse"] = lane.tail.lse
        out[f"{name}.start"] = torch.tensor([lane.start, *lane.counts])
    return {key: t.detach().cpu().contiguous().clone() for key, t in out.items()}


def check_state(group: FlowGroup, length: int, state: Mapping[str, Tensor]) -> None:
    """Raise CompositionError when saved tensors are not those of a row of `length` tokens in this group."""
    for name, branch, i, b in _named(group, 0):
        _loaded(group, branch, group.fresh()[i][b], name, length, state)


def load_row(group: FlowGroup, row: int, length: int, state: Mapping[str, Tensor]) -> None:
    """The inverse of save_row; the state was checked before."""
    fresh = group.fresh()
    group.lanes[row] = [
        [
            _loaded(group, branch, fresh[i][b], f"{layer.index}.{b}", length, state)
            for b, branch in enumerate(group.branches[i])
        ]
        for i, layer in enumerate(group.layers)
    ]


def _loaded(group: FlowGroup, branch: Branch, fresh: Lane, name: str, length: int, state: Mapping[str, Tensor]) -> Lane:
    states = tuple(
        {key: _filled(value, f"{name}.{p}.{key}", state, group.device) for key, value in part.items()}
        for p, part in enumerate(fresh.states)
    )
    start, *counts = _take(f"{name}.start", torch.zeros(1 + KINDS, dtype=torch.int64), state, None).tolist()
    empty = fresh.tail
    tail = Tail(
        _filled(empty.entries, f"{name}.tail", state, group.device),
        _take(f"{name}.tail.at", empty.at, state, 0),
        None if empty.query is None else _take(f"{name}.tail.query", empty.query, state, 1),
        None if empty.lse is None else _take(f"{name}.tail.lse", empty.lse, state, 1),
    )
    if start + len(tail.at) != length or len(tail.entries) != len(tail.at) or start % branch.cascade.unit:
        raise CompositionError(
            f"the saved row does not fit this memory, {name} has {start} + {len(tail.at)} of {length} tokens: "
            "use the same model, method and budget."
        )
    lane = Lane(states, tail, start, tuple(counts))
    renumber(branch, lane)
    return lane


def _filled(template: Any, name: str, state: Mapping[str, Tensor], device: torch.device) -> Any:
    """A saved value in the form of an empty one."""
    if isinstance(template, Entries):
        columns = {c: _take(f"{name}.{c}", t, state, 1) for c, t in template.columns().items()}
        if len({t.shape[1] for t in columns.values()}) > 1:
            raise _misfit(name, "columns of unequal lengths", template.key)
        return Entries(**columns, turned=template.turned)
    if isinstance(template, Vector):
        saved = _take(name, template.buffer.data, state, template.axis)
        return template.append(saved)
    if isinstance(template, Tensor):
        return _take(name, template, state, -1)
    parts = {key.removeprefix(f"{name}."): t for key, t in state.items() if key.startswith(f"{name}.")}
    return template.load(parts)


def _take(name: str, template: Tensor, state: Mapping[str, Tensor], axis: int | None) -> Tensor:
    """The saved tensor of a name: dtype and shape of the template, except along an axis (-1: any one)."""
    found = state.get(name)
    if found is None or found.dtype != template.dtype or found.dim() != template.dim():
        raise _misfit(name, found, template)
    for i, (a, b) in enumerate(zip(found.shape, template.shape)):
        if a != b and axis not in (i, -1):
            raise _misfit(name, found, template)
    return found.to(template.device).clone()


def _misfit(name: str, found: Any, template: Tensor) -> CompositionError:
    what = "nothing" if found is None else f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else found
    return CompositionError(
        f"the saved row does not fit this memory, {name} is {what} and should be like {template.dtype} "
        f"{list(template.shape)}: use the same model, method and budget."
    )


def forked(state: State) -> State:
    """A state for another life: values are shared, stores are forked."""
    return {key: value.fork() if hasattr(value, "fork") else value for key, value in state.items()}


def copy_row(source: FlowGroup, row: int, target: FlowGroup, to: int, length: int) -> None:
    """Make row `to` of `target` equal to a row of `source`."""
    target.lanes[to] = [
        [Lane(tuple(forked(s) for s in lane.states), lane.tail, lane.start, lane.counts, lane.ranks) for lane in layer]
        for layer in source.lanes[row]
    ]


def shift_row(group: FlowGroup, row: int, length: int, by: int) -> None:
    """Renumber a row as if `by` more tokens had passed long ago."""
    for _, branch, i, b in _named(group, row):
        lane, place = group.lanes[row][i][b], branch.place
        if by % branch.cascade.unit:
            raise NotRewindable(f"a stream is shifted by whole units of {branch.cascade.unit} tokens, not by {by}.")
        entries = lane.tail.entries
        moved = None if entries.place is None else entries.place + by
        tail = Entries(entries.key, entries.value, entries.seen + by, entries.kind, moved, entries.bias)
        lane.states = tuple(s.shift(state, by, place) for s, state in zip(branch.cascade.segments, lane.states))
        lane.tail = Tail(tail, lane.tail.at + by, lane.tail.query, lane.tail.lse)
        lane.start += by
        lane.counts = tuple(n + by if n else 0 for n in lane.counts)
        renumber(branch, lane)


def remembered(group: FlowGroup, row: int) -> Tensor:
    """[n] int64, sorted: indices that some lane of a row still holds."""
    found = []
    for _, branch, i, b in _named(group, row):
        lane = group.lanes[row][i][b]
        found.append(lane.tail.entries.seen.flatten())
        found += [s.remembered(state) for s, state in zip(branch.cascade.segments, lane.states)]
    return torch.cat(found).unique()


def views(group: FlowGroup, row: int) -> Iterator[tuple[str, tuple[int, ...], list[int]]]:
    """(part, layers, indices seen) of each layer: what each part holds, and the tail."""
    for i, layer in enumerate(group.layers):
        for b, branch in enumerate(group.branches[i]):
            lane = group.lanes[row][i][b]
            for s, state in zip(branch.cascade.segments, lane.states):
                yield type(s).__name__.lower(), (layer.index,), s.remembered(state).tolist()
            yield "tail", (layer.index,), lane.tail.entries.seen[0].tolist()


# -- going back -----------------------------------------------------------------------------------------------------


@dataclass
class Undo:
    """States at the borders passed since the oldest open mark; the lanes collect them."""

    group: FlowGroup
    row: int
    room: int

    def __post_init__(self) -> None:
        self.since: int | None = None
        for lane in self._lanes():
            lane.past = []

    def _lanes(self) -> Iterator[Lane]:
        for layer in self.group.lanes[self.row]:
            yield from layer

    @property
    def nbytes(self) -> int:
        return 0  # counted with the lanes

    def check(self, start: int, end: int) -> None:
        """Raise NotRewindable when the step from `start` to `end` would go further than the mark has room for."""
        self.since = start if self.since is None else self.since
        if end - self.since > self.room + 2 * max(b.cascade.unit for layer in self.group.branches for b in layer):
            raise NotRewindable(
                f"the open mark covers {self.room} tokens and the step would reach {end - self.since}: "
                "commit it first, or mark with a larger max_new."
            )

    def before_step(self, start: int, end: int) -> None:
        """Nothing: borders are recorded as they are passed."""

    def rollback(self, length: int) -> None:
        """Nothing: `rewind` does it."""

    def close(self) -> None:
        """The last mark is closed."""
        for lane in self._lanes():
            lane.past = None


def can_rewind(group: FlowGroup, row: int, length: int) -> bool:
    """Whether every lane has a state from which `length` tokens are left."""
    return length == 0 or all(_state_at(lane, length) is not None for layer in group.lanes[row] for lane in layer)


def _state_at(lane: Lane, length: int) -> Lane | None:
    for state in [lane, *reversed(lane.past or [])]:
        if state.start <= length <= len(state):
            return state
    return None


def rewind(group: FlowGroup, row: int, length: int) -> None:
    """Put every lane of a row back to `length` tokens; it was found possible."""
    if length == 0:
        is_marked = group.lanes[row][0][0].past is not None
        group.lanes[row] = group.fresh()
        for layer in group.lanes[row]:
            for lane in layer:
                lane.past = [] if is_marked else None
        return
    for layer in group.lanes[row]:
        for b, lane in enumerate(layer):
            state = _state_at(lane, length)
            assert state is not None
            past = None if lane.past is None else [p for p in lane.past if len(p) <= length and p is not state]
            tail = state.tail if len(state) == length else state.tail.first(length - state.start)
            layer[b] = Lane(state.states, tail, state.start, state.counts, state.ranks, past)
