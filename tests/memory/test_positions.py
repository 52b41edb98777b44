"""Rotations and biases: what a position does to a key, near zero and very far from it."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp
from torch import Tensor

from penstock.memory.positions import POLICIES, Alibi, Rotary, sink_query_positions, sink_shift

FREQUENCIES = 10000.0 ** -(torch.arange(0, 16, 2).double() / 16)


def vectors(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def matrix(angle: Tensor) -> Tensor:
    """[..., 2, 2] rotations."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [16, 20])
def test_rotate_turns_each_pair_by_its_angle(interleaved: bool, width: int) -> None:
    """Pairs are (i, i + R/2) or (2i, 2i + 1); channels past R pass unchanged."""
    rotary, x, positions = Rotary(FREQUENCIES, interleaved), vectors(3, 5, width), torch.tensor([0, 1, 7, 100, 4095])
    got = rotary.rotate(x, rotary.angles(positions))
    turn = matrix(positions[:, None] * FREQUENCIES)  # [5, R/2, 2, 2]
    first, second = (range(0, 16, 2), range(1, 16, 2)) if interleaved else (range(8), range(8, 16))
    pairs = torch.stack((x[..., list(first)], x[..., list(second)]), -1).double()
    turned = (turn @ pairs[..., None])[..., 0]
    assert (got[..., list(first)] - turned[..., 0]).abs().max() < 1e-6
    assert (got[..., list(second)] - turned[..., 1]).abs().max() < 1e-6
    assert torch.equal(got[..., 16:], x[..., 16:])
    assert torch.equal(got[:, 0], x[:, 0])  # position 0 is the identity: models are run there


@given(base=st.integers(0, 2**45), distance=st.integers(0, 5000))
def test_relative_angles_are_exact_at_any_position(base: int, distance: int) -> None:
    """A product in float64 alone is off by 1e-4 at 2**40, tables in float32 by 0.25 at 4 million."""
    rotary = Rotary(FREQUENCIES)
    far = rotary.angles(torch.tensor([base, base + distance]))
    near = rotary.angles(torch.tensor([distance]))
    cos = far.cos[0] * far.cos[1] + far.sin[0] * far.sin[1]
    sin = far.cos[0] * far.sin[1] - far.sin[0] * far.cos[1]
    assert (cos - near.cos[0]).abs().max() < 4e-7
    assert (sin - near.sin[0]).abs().max() < 4e-7


@pytest.mark.parametrize("position", [5, 2**22 + 1, 2**26 - 1, 2**26, 2**30 + 3, 2**40 + 12345, 2**52 + 1])
def test_angles_equal_those_of_long_arithmetic(position: int) -> None:
    got = Rotary(FREQUENCIES).angles(torch.tensor([position]))
    with mp.workdps(60):
        for i, frequency in enumerate(FREQUENCIES.tolist()):
            exact = Fraction(frequency) * position
            theta = mp.mpf(exact.numerator) / exact.denominator
            assert abs(float(got.cos[0, i]) - float(mp.cos(theta))) < 1e-7
            assert abs(float(got.sin[0, i]) - float(mp.sin(theta))) < 1e-7


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_distance_alone(interleaved: bool) -> None:
    """Stored keys never need re-basing: a score at 2**40 is the score near zero."""
    rotary, query, key = Rotary(FREQUENCIES, interleaved), vectors(1, 16), vectors(1, 16, seed=1)

    def score(base: int, distance: int) -> float:
        turned = rotary.rotate(key, rotary.angles(torch.tensor([base])))
        return float((rotary.rotate(query, rotary.angles(torch.tensor([base + distance]))) * turned).sum())

    for distance in (0, 1, 63, 1000):
        for base in (2**22, 2**40):
            assert abs(score(base, distance) - score(0, distance)) < 5e-6


def test_rotations_compose() -> None:
    rotary, x = Rotary(FREQUENCIES), vectors(4, 16)
    there = rotary.rotate(x, rotary.angles(torch.tensor([1000])))
    back = rotary.rotate(there, rotary.angles(torch.tensor([-1000])))
    assert (back - x).abs().max() < 1e-6


def test_three_axes_turn_their_own_frequencies() -> None:
    axis = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
    rotary = Rotary(FREQUENCIES, axis=axis)
    positions = torch.tensor([[3, 5], [40, 41], [7, 2**40]])  # [axes, T]
    got = rotary.angles(positions)
    for i, a in enumerate(axis.tolist()):
        alone = Rotary(FREQUENCIES[i : i + 1]).angles(positions[a])
        assert torch.equal(got.cos[:, i], alone.cos[:, 0])
        assert torch.equal(got.sin[:, i], alone.sin[:, 0])
    same = rotary.angles(torch.tensor([[9, 10]] * 3))  # text: all axes alike
    assert torch.equal(same.cos, Rotary(FREQUENCIES).angles(torch.tensor([9, 10])).cos)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rotate_keeps_the_dtype(dtype: torch.dtype) -> None:
    rotary, x = Rotary(FREQUENCIES), vectors(3, 16, dtype=dtype)
    angles = rotary.angles(torch.tensor([5, 6, 7]))
    got = rotary.rotate(x, angles)
    assert got.dtype == dtype
    exact = rotary.rotate(x.double(), angles)
    assert torch.equal(got, exact.to(dtype)) or (got.double() - exact).abs().max() < 1e-6


def test_alibi_is_linear_in_distance() -> None:
    slopes = torch.tensor([0.5, 0.25])
    bias = Alibi(slopes).bias(torch.tensor([10, 11]), torch.tensor([4, 10, 11]))  # [Hq, C, T]
    assert bias.tolist() == [[[-3, 0, 0.5], [-3.5, -0.5, 0]], [[-1.5, 0, 0.25], [-1.75, -0.25, 0]]]
    far = Alibi(slopes).bias(torch.tensor([2**40 + 10]), torch.tensor([2**40 + 4]))
    assert far.flatten().tolist() == [-3, -1.5]
    rows = Alibi(slopes).bias(torch.tensor([[10], [20]]), torch.tensor([[4, 10], [4, 10]]))
    assert rows.shape == (2, 2, 1, 2)  # [rows, Hq, C, T]


@given(now=st.integers(0, 10**7), budget=st.integers(1, 100), policy=st.sampled_from(POLICIES))
def test_sinks_stop_receding_when_the_memory_is_full(now: int, budget: int, policy: str) -> None:
    """The two ways to say it agree: sinks move up by the shift, or the query moves down to the clamp."""
    shift = sink_shift(now, budget, policy)
    clamp = int(sink_query_positions(torch.tensor([now]), budget, policy))
    assert now - shift == clamp
    if policy == "stream":
        assert shift == 0
    else:
        assert clamp == min(now, budget - 1)
