"""The memory of a model: every layer's cascade, for all rows of a batch.

A step is planned on the host for all layers at once, read and written by the layers while the model runs, and counted
when it ended:

    with memory.step([Span(row=0, count=64)]) as step:
        model(input_ids=..., memory=step)

Rows live separate lives.  If a step fails half way, its rows are marked broken and say so, instead of answering from a
memory in which some layers are ahead of others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from penstock.core import Phase, Span
from penstock.errors import CompositionError, ContextFull, MemoryStateError, NotRewindable
from penstock.memory.cascade import Cascade
from penstock.memory.layout import Geometry, Layer
from penstock.memory.naive import NaiveGroup
from penstock.memory.ring import RingGroup
from penstock.memory.rows import Undo, can_rewind, check_state, clear, copy_row, load_row, save_row, shift_row


class Step:
    """What the attention layers of one forward pass get: their plans.  Lives for one step."""

    def __init__(self, groups: list[Any], plans: list[Any], where: dict[int, tuple[int, int]], phase: Phase) -> None:
        self.groups, self.plans, self.where, self.phase = groups, plans, where, phase

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None = None,
        sink_logit: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Read and write one layer: query [1, Hq, N, D], key and value [1, Hkv, N, D], raw; gives [1, N, Hq, D]."""
        group, index = self.where[layer]
        return self.groups[group].attend(
            index, query, key, value, self.plans[group], scale=scale, softcap=softcap, sink_logit=sink_logit
        )


class Mark(int):
    """The length of a row when a mark was opened.  Marks at equal lengths are told apart by identity."""


@dataclass
class Row:
    """The state of a row that is the same in every layer."""

    length: int = 0  # tokens of its stream so far
    torn: int = 0  # where a failed step would have ended: layers may hold anything between; 0 when all is whole
    marks: list[Mark] = field(default_factory=list)  # the open ones, oldest first
    undo: list[Undo] = field(default_factory=list)  # one per group while a mark is open
    max_new: int = 0

    @property
    def is_broken(self) -> bool:
        return self.torn > 0


@dataclass(frozen=True)
class SegmentView:
    """Which entries a segment still holds, by index seen, in the layers that share its cascade."""

    name: str
    layers: tuple[int, ...]
    seen: range


class Memory:
    """Keys and values of `rows` streams under per-layer cascades.

    `cascades` gives one cascade per layer of the geometry.  `naive=True` runs the specification instead.
    """

    def __init__(self, geometry: Geometry, cascades: Sequence[Cascade], rows: int = 1, naive: bool = False) -> None:
        if len(cascades) != len(geometry.layers):
            raise ValueError(f"got {len(cascades)} cascades for {len(geometry.layers)} layers")
        self.geometry, self.cascades, self.num_rows, self.naive = geometry, tuple(cascades), rows, naive
        self.rows = [Row() for _ in range(rows)]
        self.groups: list[Any] = []
        self.where: dict[int, tuple[int, int]] = {}
        for members, cascade in _grouped(geometry.layers, cascades):
            kind = NaiveGroup if naive else RingGroup
            for i, layer in enumerate(members):
                self.where[layer.index] = (len(self.groups), i)
            self.groups.append(kind(members, cascade, rows, geometry.dtype, geometry.device))

    # -- sizes --------------------------------------------------------------------------------------------------

    @property
    def is_bounded(self) -> bool:
        return all(c.is_bounded for c in self.cascades)

    @property
    def nbytes(self) -> int:
        """Bytes of the real storage, what open marks hold included."""
        held_back = sum(u.nbytes for row in self.rows for u in row.undo)
        return sum(g.nbytes for g in self.groups) + held_back

    @property
    def budget_bytes(self) -> int | None:
        """Bytes that this memory may hold by its own formula, open marks included; None if it grows."""
        if not self.is_bounded:
            return None
        per_row = row_bytes(self.geometry, self.cascades)
        assert per_row is not None
        marks = sum(
            row.max_new * len(cascade.windows) * layer.entry_bytes(self.geometry.dtype)
            for row in self.rows
            if row.marks
            for layer, cascade in zip(self.geometry.layers, self.cascades)
        )
        return per_row * self.num_rows + marks

    def length(self, row: int = 0) -> int:
        """Tokens of the row's stream so far (seen, not stored)."""
        return self.rows[row].length

    def view(self, row: int = 0) -> list[SegmentView]:
        """What is still remembered, by index seen, in stream order within each group of layers."""
        out = []
        length = self.rows[row].length
        for members, cascade in _grouped(self.geometry.layers, self.cascades):
            indices = tuple(layer.index for layer in members)
            if cascade.sinks:
                out.append(SegmentView("sinks", indices, range(min(length, cascade.sinks))))
            age = 0
            for size in cascade.windows or (None,):
                name = "everything" if size is None else "window"
                low = 0 if size is None else max(cascade.sinks, length - age - size)
                out.append(SegmentView(name, indices, range(low, max(low, length - age))))
                age += size or 0
        return out

    def evicted(self, start: int, end: int) -> range:
        """Seen indices that no layer holds any more after a row went from `start` to `end` tokens, and some did."""
        if not self.is_bounded:
            return range(0)
        keep = max(sum(c.windows) for c in self.cascades)
        sinks = max(c.sinks for c in self.cascades)
        low, high = max(sinks, start - keep), max(sinks, end - keep)
        return range(low, high)

    # -- a step -------------------------------------------------------------------------------------------------

    @contextmanager
    def step(self, spans: Sequence[Span], phase: Phase = Phase.INGEST) -> Iterator[Step]:
        """Plan a packed step, hand it to the model, count it when the model returned."""
        spans = list(spans)
        self._check(spans)
        starts = [self.rows[s.row].length for s in spans]
        moves = [(u, start, start + s.count) for s, start in zip(spans, starts) for u in self.rows[s.row].undo]
        for undo, start, end in moves:
            undo.check(start, end)
        step = Step(self.groups, [g.plan(spans, starts) for g in self.groups], self.where, phase)
        for undo, start, end in moves:  # nothing can be refused from here on
            undo.before_step(start, end)
        try:
            yield step
        except BaseException:
            for span, start in zip(spans, starts):
                self.rows[span.row].torn = start + span.count
            raise
        for span in spans:
            self.rows[span.row].length += span.count

    def _check(self, spans: list[Span]) -> None:
        if not spans or any(s.count < 1 for s in spans) or len({s.row for s in spans}) != len(spans):
            raise ValueError(f"a step needs one non-empty span per row, got {spans}")
        if any(not 0 <= s.row < self.num_rows for s in spans):
            raise ValueError(f"a step names rows that this memory of {self.num_rows} does not have: {spans}")
        limit, reach = self.geometry.max_positions, self.geometry.reach
        for span in spans:
            row = self.rows[span.row]
            self._check_whole(span.row)
            if limit is not None and row.length + span.count > limit:
                raise ContextFull(
                    f"this model has learned positions for {limit} tokens and the stream would reach "
                    f"{row.length + span.count}: start a new session, or use a model with rotary or ALiBi positions."
                )
            if reach is not None and not self.is_bounded and row.length + span.count > reach:
                raise ContextFull(
                    f"this model changes its rotary frequencies after {reach} tokens and the stream would reach "
                    f"{row.length + span.count}: start a new session, or use a bounded memory."
                )

    def _check_whole(self, row: int) -> None:
        if self.rows[row].is_broken:
            raise MemoryStateError(
                f"row {row} was left half written by a failed step: roll back to a mark, reset it or resume a snapshot."
            )

    def _check_fast(self, action: str) -> None:
        if self.naive:
            raise MemoryStateError(
                f"the naive specification only steps and resets, it cannot {action}: use the fast memory."
            )

    # -- rewinding ----------------------------------------------------------------------------------------------

    def mark(self, row: int = 0, max_new: int = 256) -> Mark:
        """Remember this point; until it is committed, up to `max_new` evicted entries per window are held.

        Returns the mark (the row's length).  Marks nest; `max_new` counts from the oldest.
        """
        self._check_fast("mark")
        self._check_whole(row)
        state = self.rows[row]
        if not state.marks:
            state.max_new = max_new
            state.undo = [Undo(group, row, max_new) for group in self.groups]
        state.marks.append(Mark(state.length))
        return state.marks[-1]

    def rollback(self, mark: int, row: int = 0) -> None:
        """Return exactly to an open mark, which stays open; marks made after it are closed."""
        index = self._open(mark, row)
        self.truncate(mark, row)
        del self.rows[row].marks[index + 1 :]

    def commit(self, mark: int, row: int = 0) -> None:
        """Close a mark and those made after it; what the oldest held is let go."""
        self._close(self._open(mark, row), row)

    def _open(self, mark: int, row: int) -> int:
        """The index of a mark, as `mark` returned it, among the row's open ones."""
        marks = self.rows[row].marks
        for index, other in enumerate(marks):
            if other is mark:
                return index
        raise NotRewindable(f"there is no such open mark at {mark}: open ones are {[int(m) for m in marks] or 'none'}.")

    def _close(self, index: int, row: int) -> None:
        """Close the marks from `index` on."""
        state = self.rows[row]
        del state.marks[index:]
        if not state.marks:
            state.undo, state.max_new = [], 0

    def truncate(self, length: int, row: int = 0) -> None:
        """Forget the newest tokens so that `length` are left; exact, or NotRewindable with the reason.

        A row that a failed step left half written is whole again afterwards.
        """
        self._check_fast("truncate")
        state = self.rows[row]
        if not 0 <= length <= state.length:
            raise NotRewindable(f"cannot truncate a stream of {state.length} tokens to {length}.")
        reached = max(state.length, state.torn)
        undo: Sequence[Undo | None] = state.undo or [None] * len(self.groups)
        if not all(can_rewind(g, u, length, state.length, reached) for g, u in zip(self.groups, undo)):
            raise NotRewindable(
                f"cannot return to {length}: entries it needs were evicted since; "
                "open a mark before what may be taken back, or resume a snapshot."
            )
        for held in state.undo:
            held.rollback(length)
        for group in self.groups:
            clear(group, row, length)
        state.length, state.torn = length, 0
        self._close(sum(mark <= length for mark in state.marks), row)

    def reset(self, row: int = 0) -> None:
        """Empty a row: a new stream begins."""
        self.rows[row] = Row()
        for group in self.groups:
            if isinstance(group, NaiveGroup):
                group.rooms[row] = [group._fresh() for _ in group.layers]
            else:
                clear(group, row, 0)

    # -- copies -------------------------------------------------------------------------------------------------

    def copy_row(self, row: int, target: Memory, to: int) -> None:
        """Make row `to` of `target` (same composition; may be this memory) a copy; open marks are not copied."""
        self._check_fast("copy rows")
        self._check_whole(row)
        if target.cascades != self.cascades:
            raise CompositionError("a row fits only a memory of the same composition: use the same method and budget.")
        source = self.rows[row]
        for old, new in zip(self.groups, target.groups):
            copy_row(old, row, new, to, source.length)
        target.rows[to] = Row(length=source.length)

    def save_row(self, row: int = 0) -> dict[str, Tensor]:
        """The row's tensors by name, in stream order, on the CPU."""
        self._check_fast("save")
        self._check_whole(row)
        out: dict[str, Tensor] = {}
        for group in self.groups:
            out.update(save_row(group, row, self.rows[row].length))
        return out

    def load_row(self, state: dict[str, Tensor], length: int, row: int = 0) -> None:
        """The inverse of save_row; raises CompositionError, and changes nothing, when the state does not fit."""
        self._check_fast("load")
        for group in self.groups:
            check_state(group, length, state)
        for group in self.groups:
            load_row(group, row, length, state)
        self.rows[row] = Row(length=length)

    def shift(self, by: int, row: int = 0) -> None:
        """Move the stream's counter forward as if `by` tokens had passed (tests and benchmarks at far positions)."""
        self._check_fast("shift")
        self._check_whole(row)
        state = self.rows[row]
        full = all(c.is_bounded and state.length >= sum(c.windows) + c.sinks for c in self.cascades)
        if not full or state.marks:
            raise MemoryStateError("only a full bounded memory without marks can be shifted: read more first.")
        for group in self.groups:
            shift_row(group, row, state.length, by)
        state.length += by


def _grouped(layers: Sequence[Layer], cascades: Sequence[Cascade]) -> list[tuple[list[Layer], Cascade]]:
    """Layers that can share one plan: same cascade, encoding and head counts."""
    groups: dict[tuple[Any, ...], tuple[list[Layer], Cascade]] = {}
    for layer, cascade in zip(layers, cascades):
        key = (cascade, id(layer.encoding), layer.query_heads, layer.kv_heads, layer.key_width, layer.value_width)
        groups.setdefault(key, ([], cascade))[0].append(layer)
    return list(groups.values())


def row_bytes(geometry: Geometry, cascades: Sequence[Cascade]) -> int | None:
    """Bytes of one row: entries of every layer, plus the raw copy of the sink keys; None if it grows."""
    total = 0
    for layer, cascade in zip(geometry.layers, cascades):
        if cascade.entries is None:
            return None
        total += cascade.entries * layer.entry_bytes(geometry.dtype)
        total += cascade.sinks * layer.kv_heads * layer.key_width * geometry.dtype.itemsize
    return total


__all__ = ["Memory", "SegmentView", "Step", "row_bytes"]
