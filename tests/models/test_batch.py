"""A padded batch as packed steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from penstock.core import Phase, Span
from penstock.memory import Geometry, Layer, Memory
from penstock.methods import parse
from penstock.models.batch import Batch


def memory_of(rows: int, budget: int = 8) -> Memory:
    layer = Layer(0, 4, 2, 8, 8, None)
    geometry = Geometry((layer,), torch.float32, torch.device("cpu"))
    return Memory(geometry, parse("streaming-llm").cascades(geometry, budget), rows=rows)


def padded(*rows: str) -> Tensor:
    """[B, T] bool out of drawings: `.` is padding."""
    return torch.tensor([[c != "." for c in row] for row in rows])


def test_long_rows_are_cut_and_padding_left_out() -> None:
    memory = memory_of(3)
    batch = Batch(memory, padded("xxxxx", "..xxx", "x.x.x"), cut=2)
    assert [piece.where.tolist() for piece in batch.pieces] == [[0, 1, 7, 8, 10, 12], [2, 3, 9, 14], [4]]
    assert [piece.step.phase for piece in batch.pieces] == [Phase.INGEST, Phase.INGEST, Phase.ANSWER]
    assert [memory.length(row) for row in range(3)] == [5, 3, 3]
    following = Batch(memory, padded("x", "x", "."))
    assert following.positions(absolute=True).tolist() == [[5], [3], [0]]
    assert following.positions(absolute=False).tolist() == [[0], [0], [0]]


@pytest.mark.parametrize("cut", [1, 3, 64])
def test_a_batch_reads_what_its_rows_read_alone(cut: int) -> None:
    real = padded("xxxxxxxxxxxxxx", "...xxxxxxx.xxx", "..............")
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 14, 8, generator=generator)
    key, value = (torch.randn(3, 2, 14, 8, generator=generator) for _ in range(2))
    out = Batch(memory_of(3), real, cut).attend(0, query, key, value, scale=0.35)
    assert out.shape == (3, 14, 4, 8)
    for row in range(2):
        memory, where = memory_of(1), real[row]
        with memory.step([Span(0, int(where.sum()))]) as step:
            parts = (x[row : row + 1, :, where] for x in (query, key, value))
            alone = step.attend(0, *parts, scale=0.35)
        torch.testing.assert_close(out[row, where], alone[0])
    assert not out[~real].any(), "padding reads nothing"


def test_undo_tears_only_rows_that_were_written() -> None:
    memory = memory_of(2)
    batch = Batch(memory, padded("xxx", "..."))
    batch.undo()
    assert [row.length for row in memory.rows] == [0, 0]
    assert [row.is_broken for row in memory.rows] == [True, False]
