"""Bit planes: the bipolar number format, products by plane, reading fewer planes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from penstock.memory.codec import BitPlanes, Int4, pack_bits, unpack_bits


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bipolar(code: int, bits: int) -> int:
    """The odd integer of a code, bit by bit."""
    return sum((1 if code >> i & 1 else -1) * 2**i for i in range(bits))


def odd_of(codec: BitPlanes, coded: dict[str, Tensor]) -> Tensor:
    """The odd integers of a piece [H, T, D], from its planes."""
    return sum(  # type: ignore[return-value]
        (unpack_bits(coded[f"plane{i}"]).long() * 2 - 1) * 2**i for i in range(codec.count)
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_are_the_odd_integers_and_signed_ones_map_to_them(bits: int) -> None:
    top = 2**bits - 1
    assert sorted(bipolar(code, bits) for code in range(2**bits)) == list(range(-top, top + 1, 2))
    scale, zero = 0.25, 3.0
    for signed in range(-(2 ** (bits - 1)), 2 ** (bits - 1)):
        odd = 2 * signed + 1
        assert odd == bipolar(signed + 2 ** (bits - 1), bits)
        assert zero + scale * signed == (zero - scale / 2) + scale / 2 * odd


@pytest.mark.parametrize(("a_bits", "b_bits"), list(itertools.product([1, 2, 4], [1, 3, 8])))
def test_products_by_plane_are_products_of_integers(a_bits: int, b_bits: int) -> None:
    a_codec, b_codec = BitPlanes("token", 16, count=a_bits), BitPlanes("token", 16, count=b_bits)
    a, b = a_codec.encode(random(2, 5, 16)), b_codec.encode(random(2, 7, 16, seed=1))
    total = torch.zeros(2, 5, 7, dtype=torch.int64)
    for i, j in itertools.product(range(a_bits), range(b_bits)):
        left, right = unpack_bits(a[f"plane{i}"]).long() * 2 - 1, unpack_bits(b[f"plane{j}"]).long() * 2 - 1
        total += 2 ** (i + j) * (left @ right.transpose(-1, -2))
    assert torch.equal(total, odd_of(a_codec, a) @ odd_of(b_codec, b).transpose(-1, -2))


def test_decoding_is_the_loop_over_bits() -> None:
    codec = BitPlanes("token", 8, count=3)
    coded = codec.encode(random(2, 4, 24))
    got = codec.decode(coded, torch.float32)
    for h, t, d in itertools.product(range(2), range(4), range(24)):
        bits = [int(coded[f"plane{i}"][h, t, d // 8]) >> d % 8 & 1 for i in range(3)]
        odd = bipolar(sum(bit << i for i, bit in enumerate(bits)), 3)
        half, centre = (float(coded[name][h, t, d // 8]) for name in ("half", "centre"))
        assert float(got[h, t, d]) == pytest.approx(centre + half * odd, rel=1e-6, abs=1e-7)


def test_every_value_gets_the_nearest_code() -> None:
    codec = BitPlanes("token", 16, count=3)
    x = random(1, 30, 16)
    coded = codec.encode(x)
    half, centre = coded["half"].float(), coded["centre"].float()
    choices = centre[..., None] + half[..., None] * torch.arange(-7, 8, 2)  # [1, T, 1, 8]
    nearest = (x[..., None] - choices).abs().amin(-1)
    assert torch.allclose((codec.decode(coded, torch.float32) - x).abs(), nearest, atol=1e-6)


@pytest.mark.parametrize("codec", [BitPlanes("token", 32, count=8), BitPlanes("channel", 16, count=5)], ids=str)
def test_fewer_planes_are_coarser_within_their_bound_and_not_shifted(codec: BitPlanes) -> None:
    x = random(4, 256, 32)
    coded = codec.encode(x)
    errors = []
    for planes in range(1, codec.count + 1):
        high = {name: t for name, t in coded.items() if not name.startswith("plane")}
        high |= {f"plane{i}": coded[f"plane{i}"] for i in range(codec.count - planes, codec.count)}
        high.setdefault("plane0", torch.full_like(coded["plane0"], 170))  # never read
        got = codec.decode(high, torch.float32, planes=planes)
        assert torch.equal(got, codec.decode(coded, torch.float32, planes=planes))
        error = got - x
        assert (error.abs() <= codec.bound(coded, planes=planes)).all()
        assert error.mean().abs() < 0.05 * error.std(), "left-out planes stand for their middle"
        errors.append(float(error.norm()))
    assert all(b < 0.65 * a for a, b in itertools.pairwise(errors))


def test_bits_are_packed_eight_to_a_byte() -> None:
    bits = (random(3, 5, 40) > 0).to(torch.uint8)
    assert torch.equal(unpack_bits(pack_bits(bits)), bits)
    assert pack_bits(bits).shape == (3, 5, 5)
    assert int(pack_bits(torch.tensor([1, 0, 0, 0, 0, 0, 0, 1], dtype=torch.uint8))) == 129


def test_four_planes_cost_and_say_what_four_bits_do() -> None:
    """One grid, two layouts: the same bytes, and an error of the same size."""
    planes, integers = BitPlanes("channel", 48), Int4("channel", 48)
    assert planes.nbytes(4, 960, 32) == integers.nbytes(4, 960, 32)
    x = random(2, 96, 32)
    a, b = (c.decode(c.encode(x), torch.float32) - x for c in (planes, integers))
    assert float(a.norm()) == pytest.approx(float(b.norm()), rel=0.02)
