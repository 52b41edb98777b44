"""What a memory still holds, by index seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.memory import flow_rows
from penstock.memory.cascade import Cascade, Placement
from penstock.memory.flow import FlowGroup


@dataclass(frozen=True)
class SegmentView:
    """Which entries a segment still holds, by index seen, in the layers that share its cascade."""

    name: str
    layers: tuple[int, ...]
    seen: Sequence[int]


def views(group: Any, row: int, length: int) -> list[SegmentView]:
    """The views of one group of layers."""
    if isinstance(group, FlowGroup):
        return [SegmentView(*part) for part in flow_rows.views(group, row)]
    return _of_rule(group.cascade, tuple(layer.index for layer in group.layers), length)


def _of_rule(cascade: Cascade, layers: tuple[int, ...], length: int) -> list[SegmentView]:
    """What sinks and windows hold at a length: their rule says it."""
    out, age = [], 0
    if cascade.sinks:
        out.append(SegmentView("sinks", layers, range(min(length, cascade.sinks))))
    for size in cascade.windows or (None,):
        name = "everything" if size is None else "window"
        low = 0 if size is None else max(cascade.sinks, length - age - size)
        out.append(SegmentView(name, layers, range(low, max(low, length - age))))
        age += size or 0
    return out


def slid_out(cascades: Sequence[Placement], start: int, end: int) -> list[range]:
    """What left all windows while a stream went from `start` to `end` tokens, for cascades of sinks and windows."""
    keep = max(sum(c.windows) for c in cascades)
    sinks = max(c.sinks for c in cascades)
    low, high = max(sinks, start - keep), max(sinks, end - keep)
    return [range(low, high)] if low < high else []


def runs(numbers: Iterable[int]) -> list[range]:
    """Numbers as runs without gaps, in order."""
    out: list[range] = []
    for n in sorted(numbers):
        if out and out[-1].stop == n:
            out[-1] = range(out[-1].start, n + 1)
        else:
            out.append(range(n, n + 1))
    return out
