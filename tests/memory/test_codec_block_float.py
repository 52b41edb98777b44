"""Block floating point against loops, and the checks of K-sort."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from penstock.errors import CompositionError
from penstock.memory.codec import BlockFloat, channel_order, inverse, permuted


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def naive(codec: BlockFloat, x: Tensor) -> tuple[Tensor, Tensor]:
    """(decoded, exponents), block by block, number by number."""
    top = 2 ** (codec.bits - 1) - 1
    out, exponents = torch.zeros_like(x), []
    for h in range(x.shape[0]):
        for t in range(x.shape[1]):
            for start in range(0, x.shape[2], codec.block):
                numbers = x[h, t, start : start + codec.block].tolist()
                exponent = -100
                while max(abs(n) for n in numbers) / 2.0**exponent > top + 0.5:
                    exponent += 1
                exponents.append(exponent)
                for i, number in enumerate(numbers):
                    mantissa = min(max(round(number / 2.0**exponent), -top), top)
                    out[h, t, start + i] = mantissa * 2.0**exponent
    return out, torch.tensor(exponents)


@pytest.mark.parametrize("codec", [BlockFloat(4, 8), BlockFloat(8, 8), BlockFloat(4, 5), BlockFloat(4, 64)], ids=str)
def test_equals_the_loops(codec: BlockFloat) -> None:
    x = random(2, 7, 18) * random(18, seed=1).exp()
    x[0, 0, :8] = 0  # a block of zeros has the lowest exponent
    x[0, 1, 0] = 7.5 * 4  # the largest value that a block of step 4 takes
    coded = codec.encode(x)
    out, exponents = naive(codec, x)
    assert torch.equal(coded["exponent"].flatten().long(), exponents)
    assert torch.equal(codec.decode(coded, torch.float32), out)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_error_of_a_block_is_half_its_step(bits: int) -> None:
    codec = BlockFloat(bits, 32)
    x = random(3, 50, 64) * 10 ** random(3, 50, 1, seed=1)
    coded = codec.encode(x)
    step = torch.exp2(coded["exponent"].float()).repeat_interleave(32, -1)
    error = (codec.decode(coded, torch.float32) - x).abs()
    assert (error <= step / 2).all()
    assert (error > 0.45 * step).any()
    largest = x.abs().unflatten(-1, (-1, 32)).amax(-1)
    assert (torch.exp2(coded["exponent"].float()) * codec.largest / 2 < largest).all(), "a finer step would have done"


@pytest.mark.parametrize("rotated", [False, True])
def test_sorted_channels_leave_scores_as_they_are(rotated: bool) -> None:
    """Queries and keys permuted alike, after the rotation if there is one: the same scores, whatever the order."""
    heads, group, count, width = 2, 3, 20, 32
    query, key = random(heads * group, 5, width), random(heads, count, width, seed=1)
    if rotated:
        angles = torch.arange(count)[:, None] * torch.logspace(0, -2, width // 2)
        cos, sin = angles.cos(), angles.sin()
        a, b = key[..., : width // 2], key[..., width // 2 :]
        key = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    order = channel_order(key.square().sum(1))

    def scores(query: Tensor, key: Tensor) -> Tensor:
        return query @ key.repeat_interleave(group, 0).transpose(-1, -2)

    sorted_query = permuted(query, order.repeat_interleave(group, 0))
    assert (scores(sorted_query, permuted(key, order)) - scores(query, key)).abs().max() < 1e-5
    assert torch.equal(permuted(permuted(key, order), inverse(order)), key)
    sizes = permuted(key, order).square().sum(1)
    assert (sizes.diff(dim=-1) <= 0).all()


def test_sorting_the_weights_is_sorting_the_keys() -> None:
    """The order may be folded into the projections of queries and keys: nothing is left to do at run time."""
    heads, width, hidden = 2, 16, 24
    torch.manual_seed(0)
    to_query, to_key = nn.Linear(hidden, heads * width, bias=False), nn.Linear(hidden, heads * width, bias=False)
    x = random(9, hidden)

    def scores() -> Tensor:
        query, key = (p(x).view(9, heads, width).transpose(0, 1) for p in (to_query, to_key))
        return query @ key.transpose(-1, -2)

    with torch.no_grad():
        before = scores()
        order = channel_order(to_key.weight.view(heads, width, hidden).norm(dim=-1))
        rows = (order.long() + width * torch.arange(heads)[:, None]).flatten()
        to_query.weight.copy_(to_query.weight[rows])
        to_key.weight.copy_(to_key.weight[rows])
        assert (scores() - before).abs().max() < 1e-6
    norms = to_key.weight.view(heads, width, hidden).norm(dim=-1)
    assert (norms.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("block", [16, 32])
def test_sorting_helps_where_there_are_outlier_channels(block: int) -> None:
    """Large channels in fixed places, scattered: sorted they share blocks, and the others get a fine step."""
    width = 128
    x = random(2, 64, width)
    x[:, :, ::block] *= 10
    error = {}
    for sort in (False, True):
        codec = BlockFloat(4, block, sort)
        error[sort] = (codec.decode(codec.encode(x), torch.float32) - x).norm()
    # Every block had an outlier; sorted, the width / block outliers share one block.
    assert error[True] < 0.85 * error[False]
    small = torch.ones(width, dtype=torch.bool)
    small[::block] = False
    rest = {}
    for sort in (False, True):
        codec = BlockFloat(4, block, sort)
        rest[sort] = (codec.decode(codec.encode(x), torch.float32) - x)[..., small].norm()
    assert rest[True] < 0.8 * rest[False]


def test_one_block_per_head_gains_nothing_from_sorting() -> None:
    x = random(2, 16, 64)
    got = [c.decode(c.encode(x), torch.float32) for c in (BlockFloat(4, 64), BlockFloat(4, 64, sort=True))]
    assert torch.equal(*got)


def test_an_order_found_earlier_is_kept() -> None:
    codec = BlockFloat(4, 16, sort=True)
    calibration, x = random(2, 100, 32) * random(32, seed=1).exp(), random(2, 8, 32, seed=2)
    order = codec.order_of(calibration)
    coded = codec.encode(x, like=order)
    assert torch.equal(coded["order"], order["order"])
    sorted_x = permuted(x, order["order"])
    plain = BlockFloat(4, 16)
    assert torch.equal(
        codec.decode(coded, torch.float32, restore=False), plain.decode(plain.encode(sorted_x), torch.float32)
    )
    with pytest.raises(CompositionError, match="encode the second like the first"):
        codec.join(coded, codec.encode(-x * torch.arange(32)))


def test_bits_per_value() -> None:
    assert BlockFloat(4, 32).nbytes(4, 100, 64) * 8 / (4 * 100 * 64) == 4 + 8 / 32
    sort = BlockFloat(4, 32, sort=True).nbytes(4, 100, 64) - BlockFloat(4, 32).nbytes(4, 100, 64)
    assert sort == 4 * 64 * 2
    assert math.log2(BlockFloat(8, 32).largest + 1) == 7
