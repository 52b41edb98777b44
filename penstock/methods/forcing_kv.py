"""forcing-kv: static heads keep a sink frame and the newest one, dynamic heads also what changes.  arXiv:2605.09681

Differs from the paper: every layer chooses its own segments, by raw keys (the reference chooses in layer 1, by rotated
ones); candidates are all frames that leave a block, however many; heads are split from the first block on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Geometry, Heads, Part, Placement, Sinks, Window
from penstock.memory.entries import Entries
from penstock.memory.frames import Frame
from penstock.memory.parts import Additive, Place, Query, Readable, State, Unit
from penstock.memory.placement import choose, split
from penstock.methods.base import LAWS, Method

SEGMENTS = 6  # pieces of a frame that the store takes or leaves; fewer where that does not divide a frame


@dataclass(frozen=True)
class Changes(Part):
    """The newest `recent` frames, and of those that leave with a block the segments that change most.

    A frame is `frame` entries, cut into `segments`.  How little a segment changes is the mean cosine similarity of its
    raw keys with the same segment of the next frame, over all heads here.  The `store` x `segments` least similar stay,
    in stream order, until the next block replaces them.
    """

    frame: int
    recent: int = 1
    store: int = 1
    segments: int = SEGMENTS

    @property
    def entries(self) -> int:
        return (self.recent + self.store) * self.frame

    def begin(self, place: Place) -> State:
        return {"held": place.none(), "store": place.none()}

    def admit(self, state: State, arriving: Entries, unit: Unit, place: Place) -> tuple[State, Entries | None]:
        """Whole frames arrive; what the old store held is gone."""
        both = Entries.join([state["held"], self.settle(arriving, place)])
        leaving = len(both) - self.recent * self.frame
        if leaving <= 0:
            return {"held": both, "store": state["store"]}, None
        index = self.changing(both.key, leaving // self.frame)
        return {"held": both.cut(leaving), "store": both.take(index)}, None

    def changing(self, key: Tensor, frames: int) -> Tensor:
        """[n] int64: the entries of the first `frames` frames of key [H, T, D] that stay."""
        size = self.frame // self.segments
        grid = key.float().unflatten(1, (-1, self.segments, size))  # [H, F, P, L/P, D]
        after = torch.cat([grid[:, 1:], grid[:, -1:]], dim=1)[:, :frames]
        alike = torch.nn.functional.cosine_similarity(grid[:, :frames], after, dim=-1).mean(dim=(0, 3)).flatten()
        order = alike.argsort(stable=True)[: self.store * self.segments]
        kept = order.sort().values.cpu()
        return (kept[:, None] * size + torch.arange(size)).flatten()

    def read(self, state: State, query: Query, frame: Frame, place: Place) -> Iterator[Readable | Additive]:
        """The store, then the newest frames."""
        for name in ("store", "held"):
            held: Entries = state[name]
            if len(held):
                yield Readable.of(held, frame)

    def remembered(self, state: State) -> Tensor:
        return torch.cat([state["store"].seen[0], state["held"].seen[0]]).unique()


@dataclass(frozen=True)
class ForcingKV(Method):
    """Per-head memories for streams of frames.

    `frame` tokens make a frame (0: as many as the budget allows), `block` frames arrive together.  Every head keeps the
    first frame and the newest `context` ones; dynamic heads also `store` frames' worth of what changed most.
    What a budget has beyond that stays unused (`context=0`: static heads keep all that it holds).  `static` says which
    heads are static: a list (1.0+2.3), `all`, `none`, a file of `penstock inspect --json`, or nothing for the shipped
    model; of a file, those whose share of new tokens is `threshold` or more, the first tokens left out.
    """

    name: ClassVar[str] = "forcing-kv"
    title: ClassVar[str] = "Static heads tiny, dynamic heads keep what changes"
    source: ClassVar[str] = "arXiv:2605.09681"
    differs: ClassVar[str] = "each layer chooses its own segments, by raw keys; heads are split from the first block on"
    slots: ClassVar[tuple[str, ...]] = ("placement", "retention")
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    frame: int = 0
    block: int = 4
    context: int = 1
    store: int = 1
    static: str = ""
    threshold: float = 0.8

    def __post_init__(self) -> None:
        for name, least in (("frame", 0), ("block", 1), ("context", 0), ("store", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} of forcing-kv cannot be {getattr(self, name)}: give {least} or more.")

    def lossless(self) -> ForcingKV:
        """Every head is static and keeps all that the budget holds."""
        return dataclasses.replace(self, static="all", context=0)

    @property
    def recent(self) -> int:
        """Frames before its block that a dynamic head keeps whole."""
        return max(1, self.context)

    def size(self, budget: int | None) -> int:
        """Entries of a frame."""
        if budget is None:
            raise BudgetError("forcing-kv needs a budget: give entries (4096) or bytes (64MiB).")
        frames, frame = 1 + self.recent + self.store + self.block, self.frame or 2
        while not self.frame and frame < 64 and 2 * frame * frames <= budget:
            frame *= 2
        if frame * frames > budget:
            raise BudgetError(
                f"{frames} frames of {frame} entries do not fit into a budget of {budget}: "
                f"give at least {frame * frames}, or smaller frames (forcing-kv:frame=N)."
            )
        return frame

    def cascade(self, budget: int | None) -> Cascade:
        """What a static head keeps."""
        frame = self.size(budget)
        assert budget is not None
        window = self.context * frame or budget - (1 + self.block) * frame
        return Cascade((Sinks(frame), Window(window)), "stream", self.block * frame)

    def dynamic(self, budget: int | None) -> Cascade:
        """What a dynamic head keeps."""
        frame = self.size(budget)
        pieces = next(n for n in range(min(SEGMENTS, frame), 0, -1) if frame % n == 0)
        part = Changes(frame, self.recent, self.store, pieces)
        return Cascade((Sinks(frame), part), "stream", self.block * frame)

    def cascades(self, geometry: Geometry, budget: int | None) -> tuple[Placement, ...]:
        chosen = choose(self.static, geometry, ("local",), above=self.threshold)
        static, dynamic = self.cascade(budget), self.dynamic(budget)
        out: list[Placement] = []
        for i, layer in enumerate(geometry.layers):
            mine, others = split(chosen, i, layer.kv_heads)
            if layer.window is not None:
                out.append(static.limited_to(layer.window))
            elif mine and others and i > 0:
                out.append(Heads(((mine, static), (others, dynamic))))
            else:
                out.append(static if mine or i == 0 else dynamic)  # the first layer is not split
        return tuple(out)
