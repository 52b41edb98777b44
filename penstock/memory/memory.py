"""The memory of a model: every layer's cascade, for all rows of a batch.

A step is planned on the host for all layers at once, read and written by the layers while the model runs, and counted
when it ended:

    with memory.step([Span(row=0, count=64)]) as step:
        model(input_ids=..., memory=step)

Rows live separate lives.  If a step fails half way, its rows are marked broken and say so, instead of answering from a
memory in which some layers are ahead of others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from penstock.core import Kind, Phase, Span
from penstock.errors import CompositionError, ContextFull, MemoryStateError, NotRewindable
from penstock.memory import flow_rows, groups
from penstock.memory.archive_plan import refuse_small_tiers
from penstock.memory.backing import Backing
from penstock.memory.cascade import Placement
from penstock.memory.flow import FlowGroup
from penstock.memory.groups import Undo, grouped, row_bytes
from penstock.memory.layout import Geometry
from penstock.memory.remembered import SegmentView, runs, slid_out, views


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
    known: set[int] = field(default_factory=set)  # what was held when evictions were last asked for

    @property
    def is_broken(self) -> bool:
        return self.torn > 0


class Memory:
    """Keys and values of `rows` streams under per-layer cascades.

    `cascades` gives one cascade per layer of the geometry.  `naive=True` runs the specification instead.
    """

    def __init__(self, geometry: Geometry, cascades: Sequence[Placement], rows: int = 1, naive: bool = False) -> None:
        if len(cascades) != len(geometry.layers):
            raise ValueError(f"got {len(cascades)} cascades for {len(geometry.layers)} layers")
        self.geometry, self.cascades, self.num_rows, self.naive = geometry, tuple(cascades), rows, naive
        self.rows = [Row() for _ in range(rows)]
        self.groups: list[Any] = []
        self.where: dict[int, tuple[int, int]] = {}
        self._backing = Backing(self.cascades)
        self.wanted: range | None = None  # what an oracle makes archives fetch (comparisons only)
        for members, cascade in grouped(geometry.layers, cascades):
            for i, layer in enumerate(members):
                self.where[layer.index] = (len(self.groups), i)
            self.groups.append(groups.make_group(members, cascade, rows, geometry, naive, self._backing.pool))
        flows = [g for g in self.groups if isinstance(g, FlowGroup)]
        self._backing.expected = refuse_small_tiers([b for g in flows for layer in g.branches for b in layer], rows)

    # -- sizes --------------------------------------------------------------------------------------------------

    @property
    def is_bounded(self) -> bool:
        return all(c.is_bounded for c in self.cascades)

    @property
    def nbytes(self) -> int:
        """Bytes of the real storage on the device, what open marks hold included."""
        held_back = sum(u.nbytes for row in self.rows for u in row.undo)
        return sum(groups.nbytes(g) for g in self.groups) + held_back

    @property
    def ram_bytes(self) -> int:
        """Bytes of archived blocks in main memory, those shared with forks included."""
        return sum(pool.ram_bytes for pool in self._pools())

    @property
    def disk_bytes(self) -> int:
        """Bytes of archived blocks on disk, those shared with forks included."""
        return sum(pool.disk_bytes for pool in self._pools())

    def _pools(self) -> list[Any]:
        flows = [g for g in self.groups if isinstance(g, FlowGroup)]
        return list({id(p): p for g in flows for s in flow_rows.stores_of(g) if (p := s.pool) is not None}.values())

    @property
    def events(self) -> deque[str]:
        """The newest sentences about archived blocks that were lost, dropped or late; shared with forks."""
        return self._backing.losses.sentences

    @property
    def budget_bytes(self) -> int | None:
        """Bytes that this memory may hold by its own formula, open marks included; None if it grows."""
        if not self.is_bounded:
            return None
        per_row = row_bytes(self.geometry, self.cascades)
        assert per_row is not None
        marks = sum(
            groups.mark_bytes(layer, cascade, self.geometry.dtype, row.max_new, len(row.marks))
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
        return [v for group in self.groups for v in views(group, row, self.rows[row].length)]

    def remembered(self, row: int = 0) -> list[range]:
        """Runs of indices that some layer still holds."""
        return runs({i for view in self.view(row) for i in view.seen})

    def evicted(self, start: int, end: int, row: int = 0) -> list[range]:
        """Seen indices that no layer holds any more after a row went from `start` to `end` tokens, and some did."""
        if not self.is_bounded:
            return []
        if all(c.is_simple for c in self.cascades):
            return slid_out(self.cascades, start, end)
        # By comparison with what was held when last asked: only sessions that listen to evictions pay for it.
        now = {i for view in self.view(row) for i in view.seen}
        before, self.rows[row].known = self.rows[row].known, now
        return runs((before | set(range(start, end))) - now)

    # -- a step -------------------------------------------------------------------------------------------------

    @contextmanager
    def step(
        self, spans: Sequence[Span], phase: Phase = Phase.INGEST, kinds: Tensor | None = None, planned: bool = True
    ) -> Iterator[Step]:  # fmt: skip
        """Plan a packed step, hand it to the model, count it when the model returned.

        `kinds` [N] are the kinds (core.Kind) of the packed tokens; text, or answers in the phase ANSWER, if not given.
        Without a plan (`planned=False`) the caller reads and writes the rings by itself (penstock/kernels).
        """
        spans = list(spans)
        self._check(spans)
        starts = [self.rows[s.row].length for s in spans]
        moves = [(u, start, start + s.count) for s, start in zip(spans, starts) for u in self.rows[s.row].undo]
        for undo, start, end in moves:
            undo.check(start, end)
        plans = [self._plan(g, spans, starts, phase, kinds) for g in self.groups] if planned else []
        step = Step(self.groups, plans, self.where, phase)
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

    def _plan(self, group: Any, spans: list[Span], starts: list[int], phase: Phase, kinds: Tensor | None) -> Any:
        if not isinstance(group, FlowGroup):
            return group.plan(spans, starts)
        if kinds is None:
            kind = Kind.ANSWER if phase is Phase.ANSWER else Kind.TEXT
            kinds = torch.full((sum(span.count for span in spans),), kind, dtype=torch.uint8)
        plan = group.plan(spans, starts, kinds.to(torch.uint8), phase)
        plan.wanted = self.wanted
        return plan

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
            state.undo = [groups.undo(group, row, max_new) for group in self.groups]
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
            for undo in state.undo:
                undo.close()
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
        pairs = zip(self.groups, undo)
        if not all(groups.can_rewind(g, row, u, length, state.length, reached) for g, u in pairs):
            raise NotRewindable(
                f"cannot return to {length}: entries it needs were evicted since; "
                "open a mark before what may be taken back, or resume a snapshot."
            )
        for held in state.undo:
            held.rollback(length)
        for group in self.groups:
            groups.clear(group, row, length)
        state.length, state.torn = length, 0
        self._close(sum(mark <= length for mark in state.marks), row)

    def reset(self, row: int = 0) -> None:
        """Empty a row: a new stream begins."""
        for undo in self.rows[row].undo:
            undo.close()
        self.rows[row] = Row()
        for group in self.groups:
            groups.clear(group, row, 0)

    # -- copies -------------------------------------------------------------------------------------------------

    def copy_row(self, row: int, target: Memory, to: int) -> None:
        """Make row `to` of `target` (same composition; may be this memory) a copy; open marks are not copied."""
        self._check_fast("copy rows")
        self._check_whole(row)
        if target.cascades != self.cascades:
            raise CompositionError("a row fits only a memory of the same composition: use the same method and budget.")
        source = self.rows[row]
        for old, new in zip(self.groups, target.groups):
            groups.copy_row(old, row, new, to, source.length)
        if not target._backing.is_made:  # it reads blocks of this memory's pool
            target._backing.losses = self._backing.losses
        target.rows[to] = Row(length=source.length)

    def save_row(self, row: int = 0) -> dict[str, Tensor]:
        """The row's tensors by name, in stream order, on the CPU."""
        self._check_fast("save")
        self._check_whole(row)
        out: dict[str, Tensor] = {}
        for group in self.groups:
            out.update(groups.save_row(group, row, self.rows[row].length))
        return out

    def load_row(self, state: dict[str, Tensor], length: int, row: int = 0) -> None:
        """The inverse of save_row; raises CompositionError, and changes nothing, when the state does not fit."""
        self._check_fast("load")
        self.check_row(state, length)
        for group in self.groups:
            groups.load_row(group, row, length, state)
        self.rows[row] = Row(length=length)

    def check_row(self, state: dict[str, Tensor], length: int) -> None:
        """Raise CompositionError when a saved row of `length` tokens does not fit this memory."""
        for group in self.groups:
            groups.check_state(group, length, state)

    def shift(self, by: int, row: int = 0) -> None:
        """Move the stream's counter forward as if `by` tokens had passed (tests and benchmarks at far positions)."""
        self._check_fast("shift")
        self._check_whole(row)
        state = self.rows[row]
        full = all(c.is_bounded and state.length >= sum(c.windows) + c.sinks for c in self.cascades)
        if not full or state.marks:
            raise MemoryStateError("only a full bounded memory without marks can be shifted: read more first.")
        for group in self.groups:
            groups.shift_row(group, row, state.length, by)
        state.length += by


__all__ = ["Memory", "SegmentView", "Step", "row_bytes"]
