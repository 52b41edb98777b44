"""Every codec: its bound, its bytes, pieces by whole groups, what it refuses."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from penstock.errors import CompositionError, InputError
from penstock.memory.codec import BitPlanes, BlockFloat, Codec, Floats, Int4, Int8, Piece

CODECS: tuple[Codec, ...] = (
    Int8("channel", 16),
    Int8("token", 24),
    Int4("channel", 48),
    Int4("token", 32),
    Int4("channel", 8, scales="bfloat16"),
    Int4("token", 7, scales="bfloat16"),
    BlockFloat(bits=4, block=32),
    BlockFloat(bits=8, block=5),
    BlockFloat(bits=4, block=16, sort=True),
    BitPlanes("token", 32),
    BitPlanes("channel", 16, count=3),
    BitPlanes("token", 12, count=8),
    BitPlanes("token", 32, count=1),
    Floats(torch.float16),
    Floats(torch.bfloat16),
    Floats(torch.float32),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
every_codec = pytest.mark.parametrize("codec", CODECS, ids=str)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal, with channels of very different size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.randn(shape[-1], generator=generator).exp()


def check_bound(codec: Codec, x: Tensor) -> Piece:
    """Assert that what comes back is within the stated bound; gives the piece."""
    coded = codec.encode(x)
    got = codec.decode(coded, x.dtype)
    assert got.shape == x.shape
    assert got.dtype == x.dtype
    bound = codec.bound(coded, x.dtype)
    assert bound.expand(x.shape).isfinite().all()
    over = (got.double() - x.double()).abs() - bound.double()
    assert (over <= 0).all(), f"{codec} is off by {float(over.max())} more than its bound"
    return coded


def same(a: Piece, b: Piece) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def extremes(width: int, count: int) -> dict[str, Tensor]:
    """Inputs [2, count, width] that break careless codecs."""
    noise = random(2, count, width, seed=1)
    outlier = noise.clone()
    outlier[:, :, 3] = 3e4
    spike = torch.zeros(2, count, width)
    spike[0, 0, 0] = -1.0
    return {
        "zeros": torch.zeros(2, count, width),
        "constant": torch.full((2, count, width), 0.1),
        "negative": torch.full((2, count, width), -7.3),
        "outlier": outlier,
        "spike": spike,
        "far": 1000 + noise,
        "tiny": noise * 1e-6,
        "denormal": noise * 1e-40,
        "tops": torch.where(noise > 0, 60000.0, -60000.0),
        "positive": noise.abs(),
    }


@every_codec
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(extremes(8, 1)))
def test_extremes_are_within_the_bound(codec: Codec, dtype: torch.dtype, name: str) -> None:
    check_bound(codec, extremes(40, 2 * codec.group)[name].to(dtype))


@every_codec
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_input_is_within_the_bound(codec: Codec, data: st.DataObject) -> None:
    heads, groups, width = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 3)), data.draw(st.integers(1, 9)) * 8
    x = random(heads, groups * codec.group, width, seed=data.draw(st.integers(0, 999)))
    x = x * 10.0 ** data.draw(st.integers(-6, 3)) + data.draw(st.floats(-100, 100))
    x = x.clamp(-6e4, 6e4).to(data.draw(st.sampled_from(DTYPES)))  # infinite in float16 otherwise, which is refused
    coded = check_bound(codec, x)
    assert sum(t.numel() * t.itemsize for t in coded.values()) == codec.nbytes(*x.shape)
    fields = codec.fields(*x.shape)
    assert {name: (tuple(t.shape), t.dtype) for name, t in coded.items()} == {n: f[:2] for n, f in fields.items()}


@every_codec
def test_pieces_equal_the_whole(codec: Codec) -> None:
    """Group by group, joined or written into room that was there, is what one call gives."""
    count = 5 * codec.group
    x = random(2, count, 40)
    whole = codec.encode(x)
    parts = [codec.encode(part, like=whole) for part in x.split(codec.group, dim=1)]
    joined = parts[0]
    store = codec.empty(2, count, 40)
    codec.write(store, 0, parts[0])
    for i, part in enumerate(parts[1:], 1):
        joined = codec.join(joined, part)
        codec.write(store, i * codec.group, part)
    assert same(joined, whole)
    assert same(store, whole)


@every_codec
def test_cuts_are_the_tokens_and_own_their_storage(codec: Codec) -> None:
    x = random(2, 6 * codec.group, 40)
    whole = codec.encode(x)
    decoded = codec.decode(whole, torch.float32)
    for start, stop in itertools.combinations(range(0, 7 * codec.group, 2 * codec.group), 2):
        part = codec.cut(whole, start, stop)
        assert torch.equal(codec.decode(part, torch.float32), decoded[:, start:stop])
        stored = sum(t.untyped_storage().nbytes() for t in part.values())
        assert stored == codec.nbytes(2, stop - start, 40)


@every_codec
def test_heads_and_tokens_are_independent(codec: Codec) -> None:
    """Another head, or a token of another group, changes no code."""
    x = random(2, 2 * codec.group, 40)
    before = codec.encode(x)
    changed = x.clone()
    changed[1] = 50 * random(2 * codec.group, 40, seed=5)
    changed[0, codec.group :] *= -3
    after = codec.encode(changed, like=before)
    got, expected = (codec.decode(p, torch.float32)[0, : codec.group] for p in (after, before))
    assert torch.equal(got, expected)


@every_codec
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_what_has_no_code_is_refused(codec: Codec, bad: float) -> None:
    x = random(2, codec.group, 40)
    x[1, -1, 7] = bad
    with pytest.raises(InputError, match="NaN, infinite or beyond"):
        codec.encode(x)


@pytest.mark.parametrize("codec", [Int4("token"), BitPlanes("channel", 16)], ids=str)
def test_values_beyond_float16_scales_are_refused_and_bfloat16_takes_them(codec: Int4 | BitPlanes) -> None:
    x = 1e6 * random(1, 16, 32)
    with pytest.raises(InputError, match="choose scales=bfloat16"):
        codec.encode(x)
    check_bound(type(codec)(codec.per, codec.size, scales="bfloat16"), x)


@every_codec
def test_half_groups_are_refused(codec: Codec) -> None:
    if codec.group == 1:
        assert codec.encode(random(1, 3, 40))
        return
    whole = codec.encode(random(1, 2 * codec.group, 40))
    with pytest.raises(CompositionError, match=f"multiples of {codec.group} tokens"):
        codec.encode(random(1, codec.group + 1, 40))
    with pytest.raises(CompositionError, match=f"multiples of {codec.group} tokens"):
        codec.cut(whole, 1, codec.group + 1)
    with pytest.raises(CompositionError, match=f"multiples of {codec.group} tokens"):
        codec.empty(1, codec.group - 1, 40)


def test_wrong_options_are_refused_with_the_fix() -> None:
    for make, message in [
        (lambda: Int4("row"), "per channel or per token"),  # type: ignore[arg-type]
        (lambda: Int4("token", 0), "at least 1"),
        (lambda: Int8("token", 32, "float32"), "float16 or bfloat16"),
        (lambda: BlockFloat(bits=5), "4 or 8 bits"),
        (lambda: BlockFloat(block=0), "at least 1"),
        (lambda: BitPlanes(count=9), "1 to 8"),
        (lambda: Int4().encode(random(1, 1, 7)), "whole bytes"),
        (lambda: BitPlanes().encode(random(1, 1, 12)), "whole bytes"),
        (lambda: BitPlanes().decode(BitPlanes().encode(random(1, 1, 8)), torch.float32, planes=5), "1 to 4"),
    ]:
        with pytest.raises(CompositionError, match=message):
            make()
