"""The two kinds of store behind one set of functions: rings (ring.py, rows.py) and flows (flow.py, flow_rows.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from penstock.memory import flow_rows, rows
from penstock.memory.cascade import Heads, Placement
from penstock.memory.flow import FlowGroup
from penstock.memory.layout import Geometry, Layer
from penstock.memory.naive import NaiveGroup
from penstock.memory.ring import RingGroup

Undo = rows.Undo | flow_rows.Undo


def grouped(layers: Sequence[Layer], cascades: Sequence[Placement]) -> list[tuple[list[Layer], Placement]]:
    """Layers that can share one plan: same cascade, encoding and head counts."""
    groups: dict[tuple[Any, ...], tuple[list[Layer], Placement]] = {}
    for layer, cascade in zip(layers, cascades):
        key = (cascade, id(layer.encoding), layer.query_heads, layer.kv_heads, layer.key_width, layer.value_width)
        groups.setdefault(key, ([], cascade))[0].append(layer)
    return list(groups.values())


def make_group(
    layers: Sequence[Layer], cascade: Placement, rows: int, geometry: Geometry, naive: bool, pool: Callable[[], Any]
) -> Any:
    """The store that runs a placement."""
    dtype, device = geometry.dtype, geometry.device
    if isinstance(cascade, Heads) or not cascade.is_simple:
        return FlowGroup(layers, cascade, rows, dtype, device, pool, literal=naive)
    kind = NaiveGroup if naive else RingGroup
    return kind(layers, cascade, rows, dtype, device)


def nbytes(group: Any) -> int:
    """Bytes of the real storage."""
    return flow_rows.nbytes(group) if isinstance(group, FlowGroup) else int(group.nbytes)


def row_bytes(geometry: Geometry, cascades: Sequence[Placement]) -> int | None:
    """Device bytes of one full row, by formula; None if it grows."""
    total = 0
    for layer, cascade in zip(geometry.layers, cascades):
        if isinstance(cascade, Heads) or not cascade.is_simple:
            size = flow_rows.row_bytes(FlowGroup([layer], cascade, 0, geometry.dtype, geometry.device, _no_pool))
            if size is None:
                return None
            total += size
        elif cascade.entries is None:
            return None
        else:
            total += cascade.entries * layer.entry_bytes(geometry.dtype)
            total += cascade.sinks * layer.kv_heads * layer.key_width * geometry.dtype.itemsize
    return total


def _no_pool() -> Any:
    raise RuntimeError("a formula needs no blocks")


def mark_bytes(layer: Layer, cascade: Placement, dtype: torch.dtype, max_new: int, marks: int) -> int:
    """What open marks on a row may add in one layer."""
    if isinstance(cascade, Heads) or not cascade.is_simple:
        group = FlowGroup([layer], cascade, 0, dtype, torch.device("cpu"), _no_pool)
        unit = min(b.cascade.unit for b in group.branches[0])
        return (flow_rows.row_bytes(group) or 0) * (max_new // unit + 4)
    return max_new * len(cascade.windows) * layer.entry_bytes(dtype)


def undo(group: Any, row: int, max_new: int) -> Undo:
    """Hold what the row gives up from here on."""
    kind = flow_rows.Undo if isinstance(group, FlowGroup) else rows.Undo
    return kind(group, row, max_new)


def can_rewind(group: Any, row: int, held: Undo | None, length: int, now: int, reached: int) -> bool:
    """Whether a row of `now` tokens (a failed step reached further) can return exactly to `length`."""
    if isinstance(group, FlowGroup):
        return flow_rows.can_rewind(group, row, length)
    assert held is None or isinstance(held, rows.Undo)
    return rows.can_rewind(group, held, length, now, reached)


def clear(group: Any, row: int, length: int) -> None:
    """Leave nothing in the store that a row of `length` tokens does not hold."""
    if isinstance(group, NaiveGroup):
        group.rooms[row] = [group._fresh() for _ in group.layers]
    elif isinstance(group, FlowGroup):
        flow_rows.rewind(group, row, length)
    else:
        rows.clear(group, row, length)


def save_row(group: Any, row: int, length: int) -> dict[str, Tensor]:
    """As Memory.save_row, of one group."""
    out: dict[str, Tensor] = _of(group).save_row(group, row, length)
    return out


def check_state(group: Any, length: int, state: dict[str, Tensor]) -> None:
    """Raise CompositionError when saved tensors do not fit."""
    _of(group).check_state(group, length, state)


def load_row(group: Any, row: int, length: int, state: dict[str, Tensor]) -> None:
    """The inverse of save_row."""
    _of(group).load_row(group, row, length, state)


def copy_row(source: Any, row: int, target: Any, to: int, length: int) -> None:
    """Make row `to` of `target` equal to a row of `source`."""
    _of(source).copy_row(source, row, target, to, length)


def shift_row(group: Any, row: int, length: int, by: int) -> None:
    """As if `by` more tokens had passed long ago."""
    _of(group).shift_row(group, row, length, by)


def _of(group: Any) -> Any:
    return flow_rows if isinstance(group, FlowGroup) else rows
