"""The GPU kernels, interpreted on the CPU, equal the ring and the selectors they stand for."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from penstock.core import Span
from penstock.kernels.gpu import available
from penstock.memory.positions import Rotary
from penstock.memory.retrieval import Bounds
from penstock.memory.rows import save_row

if not available.interpreted():
    pytest.skip("Triton compiles for a device in this process", allow_module_level=True)

from penstock.kernels.gpu.decode import decode
from penstock.kernels.gpu.launch import pieces
from penstock.kernels.gpu.merge import merge
from penstock.kernels.gpu.pages import page_scores
from penstock.kernels.gpu.tables import SingleTable
from tests.kernels.gpu_tools import FP8, Kernels, both, ring_of

# Through the sinks, past the end of the window, chunks longer than it, rows in different phases.
STEPS = [{0: 2, 1: 30}, {1: 1}, {0: 7, 1: 1, 2: 4}, {0: 1, 1: 1, 2: 1}, {0: 1, 2: 1}]


def worst(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    return max(float((got.float() - expected.float()).abs().max()) for got, expected in pairs)


@pytest.mark.parametrize(
    ("about", "options"),
    [
        ({}, {}),
        ({"sinks": 0, "interleaved": True, "half": 6, "policy": "stream"}, {"softcap": 3.0}),
        ({"heads": 3, "kv_heads": 1, "sinks": 18, "policy": "contiguous"}, {"learned": True, "softcap": 2.0}),
    ],
    ids=["clamped", "partial-interleaved", "learned-sinks"],
)
def test_kernels_equal_the_ring(about: dict[str, object], options: dict[str, object]) -> None:
    ours, theirs = ring_of(**about), ring_of(**about)  # type: ignore[arg-type]
    assert worst(both(STEPS, theirs, Kernels(ours), **options)) <= 1e-5  # type: ignore[arg-type]
    lengths = [sum(step.get(row, 0) for step in STEPS) for row in range(3)]
    for row, length in enumerate(lengths):
        expected = save_row(theirs, row, length)
        for name, found in save_row(ours, row, length).items():
            assert torch.allclose(found, expected[name], rtol=0, atol=1e-5), name


def test_a_chunk_longer_than_the_window_in_several_tiles() -> None:
    ours, theirs = ring_of(rows=1), ring_of(rows=1)
    assert worst(both([{0: 7}, {0: 40}, {0: 1}], theirs, Kernels(ours))) <= 1e-5


@pytest.mark.parametrize("sinks", [0, 3])
def test_parts_of_a_large_ring_far_in_the_stream(sinks: int) -> None:
    """Several blocks of slots, read by several programs, for single tokens and for a chunk over the end of the ring."""
    ours, theirs = ring_of(rows=1, window=150, sinks=sinks), ring_of(rows=1, window=150, sinks=sinks)
    start = sinks + 150 * 7_000_000 - 2
    assert worst(both([{0: 1}, {0: 4}, {0: 1}], theirs, Kernels(ours), start=start)) <= 1e-5
    assert pieces(150, 2, 64, 4)[0] == 2


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_half_precision(dtype: torch.dtype, limit: float) -> None:
    ours, theirs = ring_of(dtype=dtype), ring_of(dtype=dtype)
    assert worst(both([{0: 7, 1: 1, 2: 4}, {0: 1, 2: 1}], theirs, Kernels(ours))) <= limit


def test_keys_and_values_in_eight_bits_with_a_scale_per_head() -> None:
    """What is read is what was stored: the same as the ring's answer from rounded keys and values, within rounding."""
    ours, theirs = ring_of(), ring_of()
    kernels = Kernels(ours, FP8)
    pairs = both([{0: 20}, {0: 1}, {0: 2, 1: 5}, {0: 1, 1: 1}], theirs, kernels)
    assert 1e-4 < worst(pairs) <= 0.15  # e4m3 has three bits behind the first: one sixteenth, averaged over keys
    assert kernels.store.scales is not None
    stored = kernels.store.ring.float() * kernels.store.scales[:, None, :, None, None]
    exact = theirs.rings[0][0]
    assert ((stored - exact).abs() <= exact.abs() / 15 + 0.02).all()
    as_torch = (exact / kernels.store.scales[:, None, :, None, None]).to(FP8)[1].float()
    assert torch.equal(kernels.store.ring[1].float(), as_torch)  # values pass no rotation: the very same numbers


def test_a_place_that_is_not_used_writes_nothing_and_reads_zeros() -> None:
    group = ring_of(rows=1, sinks=0)
    ring = group.rings[0][0].normal_()
    before = ring.clone()
    table = SingleTable([group], 2, torch.device("cpu"))
    table.fill([Span(0, 1)], [5], torch.tensor([1]))
    query, key = torch.randn(1, 4, 2, 16), torch.randn(1, 2, 2, 16)
    out, lse = decode(Kernels(group).store, query, key, key, table.singles[0], scale=0.25)
    assert out[0].abs().min() > 0
    assert out[1].abs().max() == 0
    assert lse[1].isneginf().all()
    changed = (ring != before).any(-1).any(2)[:, 0].nonzero()  # (keys or values, slot)
    assert changed.tolist() == [[0, 5], [1, 5]]


def test_parts_merge_exactly_and_an_empty_part_changes_nothing() -> None:
    scores, values = torch.randn(3, 2, 40), torch.randn(3, 2, 40, 16)
    cuts = [scores[..., :9], scores[..., 9:9], scores[..., 9:]]
    lses = torch.stack([c.logsumexp(-1) for c in cuts], -1)
    parts = zip(cuts, (values[..., :9, :], values[..., 9:9, :], values[..., 9:, :]))
    outs = torch.stack([(c.softmax(-1)[..., None] * v).sum(-2) for c, v in parts], -2)
    out, lse = merge(outs, lses, torch.float32)
    assert (out - (scores.softmax(-1)[..., None] * values).sum(-2)).abs().max() <= 1e-6
    assert (lse - scores.logsumexp(-1)).abs().max() <= 1e-6
    assert (
        merge(outs[:, :, 1:2].contiguous(), lses[:, :, 1:2].contiguous(), torch.float32)[0].abs().max() == 0
    )  # not a NaN


def test_scores_of_pages_are_the_bounds() -> None:
    key, query = torch.randn(70, 2, 8, 12), torch.randn(2, 3, 2, 12)  # [n, H, B, D], [H, g, C, D]
    for count in (1, 3):
        bounds = Bounds(count)
        summary = bounds.summary(key, None, None)
        scores = page_scores(summary, query)
        assert (scores - bounds.score(summary, query)).abs().max() <= 1e-4
        best = torch.einsum("hgcd,nhbd->hgcnb", query, key).amax(-1)
        assert (best <= scores + 1e-4).all()  # a bound on every key inside
    assert scores.topk(4).indices.shape == (2, 3, 2, 4)


def test_splitting_covers_every_slot_and_fills_the_device() -> None:
    for slots in (1, 63, 64, 65, 1024, 4096):
        for programs in (1, 8, 500):
            parts, each = pieces(slots, programs, 64, 264)
            assert each % 64 == 0
            assert (parts - 1) * each < slots <= parts * each
    assert pieces(4096, 8, 64, 264)[0] * 8 >= 256
    assert pieces(4096, 500, 64, 264)[0] == 1


def test_a_far_position_is_a_table_like_any_other() -> None:
    """Angles come from the host in float64, so that a place in the far stream costs and errs like a near one."""
    group = ring_of(rows=1)
    table = SingleTable([group], 1, torch.device("cpu"))
    far = 3 + 12 * 10**9
    table.fill([Span(0, 1)], [far], torch.tensor([1]))
    assert isinstance(group.rotary, Rotary)
    cos, sin = group.rotary.angles(torch.tensor([far]))
    assert torch.equal(table.singles[0].cos, cos)
    assert torch.equal(table.singles[0].sin, sin)
    table.prepare_next([far])
    table.fill([Span(0, 1)], [far + 1], torch.tensor([1]))
    assert torch.equal(table.singles[0].cos, group.rotary.angles(torch.tensor([far + 1])).cos)
