"""Integer codecs against loops over single numbers, and what they cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from penstock.memory.codec import Int4, Int8, Integers
from penstock.memory.codec.integers import pack, round_up, unpack


def naive_up(x: np.float32) -> np.float16:
    """The smallest float16 that is not below x."""
    near = np.float16(x)
    return np.nextafter(near, np.float16(np.inf)) if np.float32(near) < x else near


def naive(codec: Integers, x: Tensor) -> tuple[list[int], Tensor]:
    """(codes, decoded), one group after the other, one number after the other."""
    levels = 2**codec.bits - 1
    codes, out = torch.zeros(x.shape, dtype=torch.int64), torch.zeros_like(x)
    heads, count, width = x.shape
    for h in range(heads):
        if codec.per == "channel":
            groups = [
                [(h, t, d) for t in range(start, start + codec.size)]
                for start in range(0, count, codec.size)
                for d in range(width)
            ]
        else:
            groups = [
                [(h, t, d) for d in range(start, min(start + codec.size, width))]
                for t in range(count)
                for start in range(0, width, codec.size)
            ]
        for group in groups:
            numbers = [np.float32(x[place]) for place in group]
            zero = -naive_up(-min(numbers))
            scale = naive_up((max(numbers) - np.float32(zero)) / np.float32(levels))
            for place, number in zip(group, numbers):
                step = np.float32(scale) if scale > 0 else np.float32(1)
                code = min(max(int(np.rint((number - np.float32(zero)) / step)), 0), levels)
                codes[place] = code
                out[place] = float(np.float32(code) * np.float32(scale) + np.float32(zero))
    return codes.flatten().tolist(), out


@pytest.mark.parametrize(
    "codec", [Int4("channel", 6), Int8("channel", 4), Int4("token", 8), Int8("token", 5), Int4("token", 32)], ids=str
)
@pytest.mark.parametrize("shift", [0.0, -30.0])
def test_equals_the_loops(codec: Integers, shift: float) -> None:
    x = torch.randn(2, 12, 14, generator=torch.Generator().manual_seed(3)) + shift
    coded = codec.encode(x)
    codes, out = naive(codec, x)
    assert unpack(coded["codes"], codec.bits).flatten().tolist() == codes
    assert torch.equal(codec.decode(coded, torch.float32), out)


@given(st.lists(st.integers(0, 15), min_size=2, max_size=40).filter(lambda codes: len(codes) % 2 == 0))
def test_packing_loses_no_code(codes: list[int]) -> None:
    x = torch.tensor(codes, dtype=torch.uint8)
    packed = pack(x, 4)
    assert packed.numel() * 2 == x.numel()
    assert torch.equal(unpack(packed, 4), x)


@settings(max_examples=200)
@given(st.floats(-60000, 60000, width=32), st.sampled_from([torch.float16, torch.bfloat16]))
def test_rounding_up_is_the_next_number(number: float, dtype: torch.dtype) -> None:
    x = torch.tensor([number])
    up = round_up(x, dtype)
    assert up.dtype == dtype
    assert up.float() >= x
    below = -round_up(-up.float() + up.abs().float() * 2**-13 + 2**-30, dtype)
    assert below.float() < x or up.float() == x, "a number between would have done"


def test_every_code_is_used_whatever_the_rounding_of_the_scale() -> None:
    """Both ends of a group reach the first and the last code, so no range is wasted and none is cut off."""
    for codec in (Int4("token", 32), Int8("token", 32)):
        x = torch.randn(64, 8, 32, generator=torch.Generator().manual_seed(0))
        codes = unpack(codec.encode(x)["codes"], codec.bits)
        assert (codes.amin(-1) == 0).all()
        assert (codes.amax(-1) >= 2**codec.bits - 1 - (codec.bits == 8)).all()


def test_bits_per_value() -> None:
    """Codes and the 16-bit scales and zeros, nothing else."""
    for codec, bits in [
        (Int4("channel", 64), 4.5),
        (Int4("channel", 48), 4 + 32 / 48),
        (Int4("token", 32), 5),
        (Int8("channel", 64), 8.5),
        (Int8("token", 32), 9),
    ]:
        assert codec.nbytes(4, 960, 32) * 8 / (4 * 960 * 32) == pytest.approx(bits)


def test_an_outlier_channel_costs_its_own_group_only() -> None:
    """Per channel, the other channels keep their step; per token, the whole token gets the outlier's."""
    x = torch.randn(1, 64, 32, generator=torch.Generator().manual_seed(0))
    x[:, :, 5] *= 100
    others = [d for d in range(32) if d != 5]
    error = {
        per: (codec.decode(codec.encode(x), torch.float32) - x)[..., others].abs().mean()
        for per, codec in [("channel", Int4("channel", 64)), ("token", Int4("token", 32))]
    }
    assert error["channel"] < 0.15
    assert error["token"] > 4 * error["channel"]
