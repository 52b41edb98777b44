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
from penstock.errors import ContextFull, MemoryStateError, NotRewindable
from penstock.memory.cascade import Cascade
from penstock.memory.layout import Geometry, Layer
from penstock.memory.naive import NaiveGroup
from penstock.memory.ring import RingGroup
from penstock.memory.rows import Undo, copy_row, load_row, save_row, shift_row


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


@dataclass
class Row:
    """The state of a row that is the same in every layer."""

    length: int = 0  # tokens of its stream so far
    broken: bool = False
    marks: list[int] = field(default_factory=list)  # lengths at the open marks
    undo: list[Undo] = field(default_factory=list)  # one per group while a mark is open
    max_new: int = 0


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
        for span, start in zip(spans, starts):
            for undo in self.rows[span.row].undo:
                undo.before_step(start, start + span.count)
        step = Step(self.groups, [g.plan(spans, starts) for g in self.groups], self.where, phase)
        try:
            yield step
        except BaseException:
            for span in spans:
                self.rows[span.row].broken = True
            raise
        for span in spans:
            self.rows[span.row].length += span.count

    def _check(self, spans: list[Span]) -> None:
        if not spans or any(s.count < 1 for s in spans) or len({s.row for s in spans}) != len(spans):
            raise ValueError(f"a step needs one non-empty span per row, got {spans}")
        limit = self.geometry.max_positions
        for span in spans:
            row = self.rows[span.row]
            if row.broken:
                raise MemoryStateError(
                    f"row {span.row} was left half written by a failed step: reset it or resume a snapshot."
                )
            if limit is not None and row.length + span.count > limit:
                raise ContextFull(
                    f"this model has learned positions for {limit} tokens and the stream would reach "
                    f"{row.length + span.count}: start a new session, or use a model with rotary or ALiBi positions."
                )

    # -- rewinding ----------------------------------------------------------------------------------------------

    def mark(self, row: int = 0, max_new: int = 256) -> int:
        """Remember this point; until it is committed, up to `max_new` evicted entries per window are held.

        Returns the mark (the row's length).  Marks nest; `max_new` counts from the oldest.
        """
        state = self.rows[row]
        if self.naive:
            raise MemoryStateError("the naive specification keeps no marks: use the fast memory.")
        if not state.marks:
            state.max_new = max_new
            state.undo = [Undo(group, row, max_new) for group in self.groups]
        state.marks.append(state.length)
        return state.length

    def rollback(self, mark: int, row: int = 0) -> None:
        """Return exactly to an open mark, which stays open; marks made after it are closed."""
        state = self.rows[row]
        if mark not in state.marks:
            raise NotRewindable(f"there is no open mark at {mark}: open ones are {state.marks or 'none'}.")
        self.truncate(mark, row)

    def commit(self, mark: int, row: int = 0) -> None:
        """Close a mark and those made after it; what the oldest held is let go."""
        state = self.rows[row]
        if mark not in state.marks:
            raise NotRewindable(f"there is no open mark at {mark}: open ones are {state.marks or 'none'}.")
        del state.marks[state.marks.index(mark) :]
        if not state.marks:
            state.undo, state.max_new = [], 0

    def truncate(self, length: int, row: int = 0) -> None:
        """Forget the newest tokens so that `length` are left; exact, or NotRewindable with the reason."""
        state = self.rows[row]
        if not 0 <= length <= state.length:
            raise NotRewindable(f"cannot truncate a stream of {state.length} tokens to {length}.")
        covered = bool(state.marks) and length >= state.marks[0]
        if not covered and self._evicted_any(length, state.length):
            raise NotRewindable(
                f"cannot return to {length}: entries it needs were evicted since; "
                "open a mark before what may be taken back, or resume a snapshot."
            )
        for undo in state.undo if covered else []:
            undo.rollback(length)
        state.length, state.broken = length, False
        state.marks = [m for m in state.marks if m <= length]
        if not state.marks:
            state.undo, state.max_new = [], 0

    def _evicted_any(self, start: int, end: int) -> bool:
        """Whether some window gave something up on the way from `start` to `end` tokens."""
        if start == end:
            return False
        return any(c.is_bounded and end > c.sinks + min(c.windows) for c in self.cascades)

    def reset(self, row: int = 0) -> None:
        """Empty a row: a new stream begins."""
        self.rows[row] = Row()
        for group in self.groups:
            if isinstance(group, NaiveGroup):
                group.rooms[row] = [group._fresh() for _ in group.layers]

    # -- copies -------------------------------------------------------------------------------------------------

    def copy_row(self, row: int, target: Memory, to: int) -> None:
        """Make row `to` of `target` (same composition; may be this memory) a copy; open marks are not copied."""
        source = self.rows[row]
        if source.broken:
            raise MemoryStateError(f"row {row} was left half written by a failed step: it cannot be copied.")
        for old, new in zip(self.groups, target.groups):
            copy_row(old, row, new, to, source.length)
        target.rows[to] = Row(length=source.length)

    def save_row(self, row: int = 0) -> dict[str, Tensor]:
        """The row's tensors by name, in stream order, on the CPU."""
        if self.rows[row].broken:
            raise MemoryStateError(f"row {row} was left half written by a failed step: it cannot be saved.")
        out: dict[str, Tensor] = {}
        for group in self.groups:
            out.update(save_row(group, row, self.rows[row].length))
        return out

    def load_row(self, state: dict[str, Tensor], length: int, row: int = 0) -> None:
        """The inverse of save_row."""
        for group in self.groups:
            load_row(group, row, length, state)
        self.rows[row] = Row(length=length)

    def shift(self, by: int, row: int = 0) -> None:
        """Move the stream's counter forward as if `by` tokens had passed (tests and benchmarks at far positions)."""
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
