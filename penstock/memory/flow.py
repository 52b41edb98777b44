"""The general store of a group of layers: any cascade of parts, unit by unit (parts.py says what a unit is).

Each layer of each row is a *lane* (per branch, where heads are placed apart): the parts' states and the tail, the
unit's own entries so far.  A step is cut at unit borders; each piece

1. joins the tail,
2. reads: the tail causally, then what each part offers, merged one after the other by logsumexp,
3. if it ends its unit, moves: the tail enters the first part, what that gives up the next.

With `literal` it is the specification instead: token by token, all that is read in one softmax in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from penstock.core import Kind, Phase, Span
from penstock.errors import CompositionError, ContextFull
from penstock.memory.attend import Partial, learned_sink
from penstock.memory.cascade import Cascade, Heads, Placement
from penstock.memory.chooser import Chooser
from penstock.memory.entries import Entries
from penstock.memory.frames import Ranks, frame, rank
from penstock.memory.layout import Layer
from penstock.memory.parts import Offer, Place, Query, Readable, State, Unit
from penstock.memory.positions import Alibi, Angles
from penstock.memory.reading import Reader

KINDS = 8  # counters that a saved lane has room for; three are used: read, written, read before the first was written
_FAR = 1 << 62  # clamps nothing


@dataclass(frozen=True)
class Tail:
    """The entries of the unit so far, raw; with its queries and what they read, where a part asked for them."""

    entries: Entries
    at: Tensor  # [n] int64, stream positions
    query: Tensor | None = None  # [Hq, n, D] raw
    lse: Tensor | None = None  # [Hq, n] float32

    def first(self, count: int) -> Tail:
        """The unit as it was after `count` tokens."""
        return Tail(
            self.entries.cut(0, count), self.at[:count].clone(),
            None if self.query is None else self.query[:, :count].clone(),
            None if self.lse is None else self.lse[:, :count].clone(),
        )  # fmt: skip


@dataclass
class Lane:
    """One row of one layer and branch.  States and tail are immutable values; a lane is where the newest are."""

    states: tuple[State, ...]
    tail: Tail
    start: int = 0  # index in the stream of the unit's first token
    counts: tuple[int, ...] = (0,) * KINDS  # tokens read and written before the unit, where they count apart
    ranks: Ranks | None = None
    past: list[Lane] | None = None  # as it was at each border since the oldest open mark

    def __len__(self) -> int:
        return self.start + len(self.tail.at)

    def snapshot(self) -> Lane:
        """The same lane, to keep."""
        return Lane(self.states, self.tail, self.start, self.counts, self.ranks)


@dataclass(frozen=True)
class Branch:
    """Some key-value heads of a layer and the cascade that serves them."""

    cascade: Cascade
    place: Place
    heads: Tensor | None  # key-value heads, None for all
    query_heads: Tensor | None

    @property
    def needs_queries(self) -> bool:
        return any(s.needs_queries or s.needs_mass for s in self.cascade.segments)

    @property
    def needs_mass(self) -> bool:
        return any(s.needs_mass for s in self.cascade.segments)


@dataclass
class FlowPlan:
    """One step: its spans as (row, offset, start, count), kinds of its tokens, and angles computed once."""

    spans: tuple[tuple[int, int, int, int], ...]
    kinds: Tensor  # [N] uint8
    phase: Phase
    memo: dict[Any, Angles] = field(default_factory=dict)
    wanted: range | None = None
    decode: None = None
    at: Tensor | None = None  # [N] int64: where tokens stand, if the caller counts positions
    chooser: Chooser | None = None  # who chooses among the blocks of archives, if not PyTorch
    read: Callable[[Reader, Iterable[Offer], Query], tuple[Partial, Tensor | None]] = Reader.read


class FlowGroup:
    """Layers that share a placement, an encoding and head counts; all rows."""

    def __init__(
        self, layers: Sequence[Layer], cascade: Placement, rows: int, dtype: torch.dtype, device: torch.device,
        pool: Callable[[], Any], literal: bool = False,
    ) -> None:  # fmt: skip
        self.layers, self.cascade, self.rows, self.dtype, self.device = tuple(layers), cascade, rows, dtype, device
        self.literal = literal
        self.branches = [_branches(layer, cascade, dtype, device, pool) for layer in layers]
        for branch in (b for layer in self.branches for b in layer):
            for segment in branch.cascade.segments:
                segment.check(branch.place)
        # lanes[row][layer][branch]
        self.lanes = [self.fresh() for _ in range(rows)]

    def fresh(self) -> list[list[Lane]]:
        """The lanes of an empty row."""
        return [[new_lane(b) for b in layer] for layer in self.branches]

    def plan(
        self, spans: list[Span], starts: list[int], kinds: Tensor | None = None, phase: Phase = Phase.INGEST
    ) -> FlowPlan:
        """Host work of a step, once for all layers of the group."""
        out, offset = [], 0
        for span, start in zip(spans, starts):
            out.append((span.row, offset, start, span.count))
            offset += span.count
        kinds = torch.zeros(offset, dtype=torch.uint8) if kinds is None else kinds
        for row, offset, _, count in out:
            self._check_gap(row, kinds[offset : offset + count])
        return FlowPlan(tuple(out), kinds, phase)

    def _check_gap(self, row: int, kinds: Tensor) -> None:
        """What is read must not reach the positions of what is written."""
        for branch, lane in zip(self.branches[0], self.lanes[row][0]):
            gap = branch.cascade.gap
            if (
                gap
                and lane.counts[0] + sum(int((_sides(k) == 0).sum()) for k in (lane.tail.entries.kind[0], kinds)) > gap
            ):
                raise ContextFull(
                    f"what is read would reach position {gap}, where this memory's written tokens begin: "
                    "use gap=0, a larger gap, or a new session."
                )

    def attend(
        self, index: int, query: Tensor, key: Tensor, value: Tensor, plan: FlowPlan, *, scale: float,
        softcap: float | None = None, sink_logit: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As RingGroup.attend."""
        out = query.new_empty(query.shape[1], query.shape[2], value.shape[-1])  # [Hq, N, Dv]
        for b, branch in enumerate(self.branches[index]):
            q, k, v, logit = query[0], key[0], value[0], sink_logit
            if branch.heads is not None:
                q, k, v = q[branch.query_heads], k[branch.heads], v[branch.heads]
                logit = None if logit is None else logit[branch.query_heads]
            reader = Reader(branch.cascade, branch.place, scale, softcap, self.literal)
            parts = []
            for row, offset, start, count in plan.spans:
                lane, done = self.lanes[row][index][b], 0
                while done < count:
                    room = 1 if self.literal else branch.cascade.unit - len(lane.tail.at)
                    size = min(room, count - done)
                    cut = slice(offset + done, offset + done + size)
                    parts.append(
                        _piece(
                            branch,
                            lane,
                            reader,
                            q[:, cut],
                            k[:, cut],
                            v[:, cut],
                            start + done,
                            plan.kinds[cut],
                            plan,
                            logit,
                            None if plan.at is None else plan.at[cut],
                        )
                    )
                    done += size
            result = torch.cat(parts, dim=1)
            if branch.query_heads is None:
                out = result
            else:
                out[branch.query_heads] = result
        return out.transpose(0, 1)[None]


def _piece(
    branch: Branch, lane: Lane, reader: Reader, query: Tensor, key: Tensor, value: Tensor, start: int, kinds: Tensor,
    plan: FlowPlan, sink_logit: Tensor | None, given: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Some consecutive tokens within one unit: join the tail, read, and move if the unit ends.  Gives [Hq, C, Dv]."""
    place, count = branch.place, query.shape[1]
    seen = torch.arange(start, start + count)
    at = given if given is not None else _counted(branch, lane, kinds) if branch.cascade.apart else seen
    heads = place.heads
    fresh = Entries(
        key, value, seen.expand(heads, -1), kinds.expand(heads, -1), at.expand(heads, -1) if place.placed else None
    )
    old = lane.tail
    entries = Entries.join([old.entries, fresh])
    query_tail = torch.cat([old.query, query], dim=1) if old.query is not None else None
    lane.tail = Tail(entries, torch.cat([old.at, at]), query_tail, old.lse)
    asked = Query(query, seen, at, kinds, plan.phase, place, plan.memo, plan.wanted, plan.chooser)
    part, extra = plan.read(reader, readables(branch, lane, asked), asked)
    if sink_logit is not None:
        part = learned_sink(part, sink_logit)
    if old.lse is not None:
        lane.tail = Tail(entries, lane.tail.at, query_tail, torch.cat([old.lse, part.lse[0]], dim=1))
    out = part.out[0].to(query.dtype)
    if extra is not None:
        out = out + extra.to(out.dtype)
    if len(lane.tail.at) == branch.cascade.unit:
        _move(branch, lane, plan, reader)
    return out


def readables(branch: Branch, lane: Lane, query: Query) -> Iterator[Offer]:
    """All that the queries read: the tail, then what each part offers."""
    cascade, place = branch.cascade, branch.place
    tail = lane.tail.entries
    yield Readable(tail.key, tail.value, tail.at, query.at, False, tail.kind, causal=len(query) > 1)
    local = query.seen - lane.start
    for i, (segment, state) in enumerate(zip(cascade.segments, lane.states)):
        where = frame(cascade.positions, segment.role, query.at, local, place.cap, lane.ranks, i)
        yield from segment.read(state, query, where, place)


def _counted(branch: Branch, lane: Lane, kinds: Tensor) -> Tensor:
    """[C] int64: the number of each token among those that were read, or (from the gap on) that were written."""
    before = torch.tensor(lane.counts) + torch.bincount(_sides(lane.tail.entries.kind[0]), minlength=KINDS)
    side = _sides(kinds)
    one_hot = torch.nn.functional.one_hot(side, KINDS)  # [C, K]
    start = branch.cascade.gap
    if branch.cascade.overlap:
        start += _began(lane, torch.cat([lane.tail.entries.kind[0], kinds]))
    return (before + one_hot.cumsum(0) - one_hot).gather(1, side[:, None])[:, 0] + start * side


def _began(lane: Lane, kinds: Tensor) -> int:
    """How many tokens were read before the first was written; `kinds`: of the unit so far."""
    if lane.counts[1]:
        return lane.counts[2]
    written = _sides(kinds).nonzero()
    return lane.counts[0] + (int(written[0]) if len(written) else len(kinds))


def _sides(kinds: Tensor) -> Tensor:
    """Which counter a kind has: what the model writes counts apart from all that it reads."""
    return (kinds == Kind.ANSWER).long()


def _move(branch: Branch, lane: Lane, plan: FlowPlan, reader: Reader) -> None:
    """The unit ends: its entries enter the cascade."""
    if lane.past is not None:
        lane.past.append(lane.snapshot())
    tail, place = lane.tail, branch.place
    unit = Unit(lane.start, len(tail.at), plan.phase, tail.query, tail.at, tail.lse, tail.entries.kind[0])
    unit = replace(unit, scale=reader.scale, softcap=reader.softcap, chooser=plan.chooser)
    arriving: Entries | None = tail.entries
    states: list[State] = []
    for i, (segment, state) in enumerate(zip(branch.cascade.segments, lane.states)):
        if arriving is not None and len(arriving):
            if segment.needs_queries or segment.needs_mass:
                local, policy = torch.arange(unit.count), branch.cascade.positions
                unit = replace(unit, frame=frame(policy, segment.role, tail.at, local, place.cap, lane.ranks, i))
            state, arriving = segment.admit(state, arriving, unit, place)
        states.append(state)
    if branch.cascade.apart:
        more = torch.bincount(_sides(tail.entries.kind[0]), minlength=KINDS).tolist()
        began = _began(lane, tail.entries.kind[0]) if more[1] and not lane.counts[1] else lane.counts[2]
        read, written, _, *rest = (a + b for a, b in zip(lane.counts, more))
        lane.counts = (read, written, began, *rest)
    lane.states, lane.start = tuple(states), lane.start + unit.count
    lane.tail = _empty_tail(branch)
    renumber(branch, lane)


def renumber(branch: Branch, lane: Lane) -> None:
    """Contiguous ranks of what the lane holds."""
    if branch.cascade.positions != "contiguous":
        return
    pairs = list(zip(branch.cascade.segments, lane.states))
    held = [None if s.dynamic else s.held(state) for s, state in pairs]
    spans = [s.span(state) if s.dynamic else (0, 0, 0) for s, state in pairs]
    lane.ranks = rank(held, spans)


def _empty_tail(branch: Branch) -> Tail:
    place = branch.place
    query = lse = None
    if branch.needs_queries:
        heads = place.heads * place.group
        query = torch.zeros(heads, 0, place.layer.key_width, dtype=place.dtype, device=place.device)
        lse = torch.zeros(heads, 0, device=place.device) if branch.needs_mass else None
    return Tail(place.none(), torch.zeros(0, dtype=torch.int64), query, lse)


def new_lane(branch: Branch) -> Lane:
    """A lane that has seen nothing."""
    lane = Lane(tuple(s.begin(branch.place) for s in branch.cascade.segments), _empty_tail(branch))
    renumber(branch, lane)
    return lane


def _branches(
    layer: Layer, placement: Placement, dtype: torch.dtype, device: torch.device, pool: Callable[[], Any]
) -> tuple[Branch, ...]:
    group = layer.query_heads // layer.kv_heads
    pairs = placement.branches if isinstance(placement, Heads) else (((), placement),)
    if isinstance(placement, Heads):
        _check_heads(layer, placement)
    out = []
    for i, (heads, cascade) in enumerate(pairs):
        index = torch.tensor(heads, device=device) if heads else None
        queries = None if index is None else (index[:, None] * group + torch.arange(group, device=device)).flatten()
        mine = layer
        if queries is not None and isinstance(layer.encoding, Alibi):  # each branch has the slopes of its own heads
            mine = replace(layer, encoding=Alibi(layer.encoding.slopes[queries.to(layer.encoding.slopes.device)]))
        place = Place(
            mine, len(heads) or layer.kv_heads, group, dtype, device, cascade.positions, cascade.unit,
            _FAR if cascade.entries is None else cascade.entries - 1, cascade.apart, f"{layer.index}.{i}", pool,
        )  # fmt: skip
        out.append(Branch(cascade, place, index, queries))
    return tuple(out)


def _check_heads(layer: Layer, placement: Heads) -> None:
    """Raise CompositionError when a placement does not name exactly the heads of the layer."""
    named = sorted(head for heads, _ in placement.branches for head in heads)
    if named != list(range(layer.kv_heads)):
        raise CompositionError(
            f"the placement names key-value heads {named} and layer {layer.index} has {layer.kv_heads}: "
            f"name each of 0 to {layer.kv_heads - 1} once."
        )


__all__ = ["Branch", "FlowGroup", "FlowPlan", "Lane", "Tail", "new_lane", "readables", "renumber"]
