"""The steps of a padded batch: what a transformers cache is called with, in terms of a memory's packed steps.

Transformers calls a model with [B, T] tokens, some of them padding; a memory takes packed tokens of rows.  A long
prompt is cut into several steps, which every layer reads one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from penstock.core import Phase, Span
from penstock.errors import UnsupportedModel, UsageError
from penstock.memory import Memory, Placement, Step
from penstock.models.attach import Attached

CUT = 256  # tokens per row and step; results do not depend on it


@dataclass(frozen=True)
class Piece:
    """One packed step and where its tokens lie among the B * T of the batch."""

    step: Step
    where: Tensor  # [N] int64


class Batch:
    """One forward pass over `real` [B, T] tokens (False: padding), planned for all layers.

    The rows' lengths are counted at once; `undo` takes that back when the pass fails.
    """

    def __init__(self, memory: Memory, real: Tensor, cut: int = CUT) -> None:
        self.memory, self.shape = memory, tuple(real.shape)
        self.starts = [memory.length(row) for row in range(memory.num_rows)]
        tokens = [row.nonzero()[:, 0] + index * real.shape[1] for index, row in enumerate(real)]
        self.pieces: list[Piece] = []
        try:
            for first in range(0, max(map(len, tokens)), cut):
                parts = [(row, part) for row, t in enumerate(tokens) if len(part := t[first : first + cut])]
                phase = Phase.INGEST if max(len(part) for _, part in parts) > 1 else Phase.ANSWER
                with memory.step([Span(row, len(part)) for row, part in parts], phase) as step:
                    self.pieces.append(Piece(step, torch.cat([part for _, part in parts])))
        except BaseException:  # refused before anything was written
            for row, start in zip(memory.rows, self.starts):
                row.length = start
            raise
        self.whole = len(self.pieces) == 1 and len(self.pieces[0].where) == real.numel()

    def positions(self, absolute: bool) -> Tensor:
        """[B, T] position ids for the model: zeros, or the stream's own where the model learned a table."""
        out = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.int64, device=self.memory.geometry.device)
        if absolute:
            counts = list(self.starts)
            for piece in self.pieces:
                for index in piece.where.tolist():
                    row = index // self.shape[1]
                    out[index] = counts[row]
                    counts[row] += 1
        return out.view(self.shape)

    @torch.no_grad()
    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None = None,
        sink_logit: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As Step.attend, for query [B, Hq, T, D], key and value [B, Hkv, T, D]; gives [B, T, Hq, D]."""
        query, key, value = (_packed(x) for x in (query, key, value))  # [1, H, B * T, D]
        out = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])
        for piece in self.pieces:
            parts = (query, key, value)
            if not self.whole:
                parts = (query[:, :, piece.where], key[:, :, piece.where], value[:, :, piece.where])
            read = piece.step.attend(layer, *parts, scale=scale, softcap=softcap, sink_logit=sink_logit)
            if self.whole:
                out = read
            else:
                out[:, piece.where] = read
        return out.reshape(self.shape[0], self.shape[1], out.shape[2], out.shape[3])

    def undo(self) -> None:
        """The pass failed half way: rows that it wrote are torn until they are reset or rewound."""
        for row, start in zip(self.memory.rows, self.starts):
            if row.length > start:
                row.length, row.torn = start, row.length


def _packed(x: Tensor) -> Tensor:
    """[B, H, T, D] -> [1, H, B * T, D]"""
    return x if x.shape[0] == 1 else x.transpose(0, 1).flatten(1, 2)[None]


class Through:
    """The memory behind a cache whose model reads it in its attention layers."""

    def __init__(self, attached: Attached, cascades: Sequence[Placement]) -> None:
        self.attached, self.cascades = attached, tuple(cascades)
        self.memory: Memory | None = None
        self.seen = 0  # columns of the batch so far, padding included
        self.recording = False  # steps are kept so that they can be taken back exactly
        self._marks: list[tuple[Any, int]] = []
        self._batch: Batch | None = None
        self._open = ExitStack()

    def begin(self, real: Tensor) -> dict[str, Any]:
        """Plan a pass over `real` [B, T] (False: padding); gives the model's arguments."""
        own, adapter, geometry = self.attached.own, self.attached.adapter, self.attached.geometry
        if own is not None and not own.is_replaced:
            raise UnsupportedModel(
                "this model was given another attention since the cache was made: "
                "set it back with set_attn_implementation('penstock'), or make a new cache."
            )
        if self.memory is None:
            self.memory = Memory(geometry, self.cascades, rows=len(real))
        rows = self.memory.num_rows
        if len(real) != rows:
            raise UsageError(f"this cache holds {rows} rows and was called with {len(real)}: reset it or make another.")
        self._mark(self.memory, real.shape[1])
        self._batch = batch = Batch(self.memory, real)
        arguments: dict[str, Any] = {
            "past_key_values": None,
            "use_cache": False,
            "attention_mask": None,
            "position_ids": batch.positions(geometry.is_absolute),
        }
        if adapter is None:
            return {**arguments, "memory": batch}
        self._open.enter_context(adapter.use(batch))
        return arguments

    def _mark(self, memory: Memory, count: int) -> None:
        """While recording, hold what the next `count` tokens evict."""
        for mark, row in self._marks:
            memory.commit(mark, row)
        short = self.recording and count <= CUT
        self._marks = [(memory.mark(row, count), row) for row in range(memory.num_rows)] if short else []

    def end(self, failed: bool) -> bool:
        """The model returned; True: the cache is to be put on its output."""
        self._open.close()
        batch, self._batch = self._batch, None
        if batch is None:  # the pass was refused before it began
            return False
        if failed:
            batch.undo()
            return False
        self.seen += batch.shape[1]
        return True

    def reset(self) -> None:
        """New streams begin."""
        self.memory, self.seen, self._marks = None, 0, []

    def crop(self, removed: int) -> None:
        """Take back the newest tokens of every row; NotRewindable where that cannot be exact."""
        if removed < 0:
            raise UsageError("crop takes the number of tokens to remove as a negative number.")
        if self.memory is not None and removed:
            for row in range(self.memory.num_rows):
                self.memory.truncate(self.memory.length(row) - removed, row)
            self.seen -= removed

    def select(self, indices: Tensor) -> None:
        """Row i becomes a copy of row indices[i]; the number of rows follows."""
        if self.memory is None:
            return
        new = Memory(self.attached.geometry, self.cascades, rows=len(indices))
        for to, row in enumerate(indices.tolist()):
            self.memory.copy_row(row, new, to)
        self.memory, self._marks = new, []

    def copy_to(self, other: Through) -> None:
        """Make another reader of the same model and cascades continue from here."""
        other.memory, other.seen = self.memory, self.seen
        if self.memory is not None:
            other.select(torch.arange(self.memory.num_rows))
