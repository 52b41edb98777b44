"""Partials and their merge: the attention over a union of keys, whichever way it is cut."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from penstock.memory.attend import (
    MASKED,
    Partial,
    empty,
    learned_sink,
    masked_value,
    merge,
    partial,
    partial_loops,
    partial_math,
)

SCALE = 0.3


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """One softmax in float64, heads repeated: what every cut must give."""
    group = query.shape[1] // key.shape[1]
    query, key, value = query.double(), key.double().repeat_interleave(group, 1), value.double()
    scores = query @ key.transpose(-1, -2) * SCALE
    if mask is not None:
        scores = scores + mask.double()
    return scores.softmax(-1) @ value.repeat_interleave(group, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (5, 1)])
@pytest.mark.parametrize("count", [1, 9])
def test_partial_is_softmax_attention(dtype: torch.dtype, heads: int, kv_heads: int, count: int) -> None:
    query, key, value = (
        random(2, h, n, 8, seed=i, dtype=dtype)
        for i, (h, n) in enumerate([(heads, count), (kv_heads, 13), (kv_heads, 13)])
    )
    expected = attention(query, key, value)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for function in (partial, partial_math):
        got = function(query, key, value, scale=SCALE)
        assert got.out.dtype == dtype
        assert (got.out.double() - expected).abs().max() < tolerance, function.__name__
        scores = query.double() @ key.double().repeat_interleave(heads // kv_heads, 1).transpose(-1, -2) * SCALE
        assert (got.lse.double() - scores.logsumexp(-1)).abs().max() < max(tolerance, 1e-6)


def test_query_head_reads_its_group() -> None:
    """Head h reads key-value head h // group, not h % kv_heads: with one-hot values the answer names the head."""
    value = torch.eye(3)[None, :, None, :].expand(1, 3, 4, 3).contiguous()  # [1, Hkv=3, T=4, Dv=3]
    query, key = random(1, 6, 2, 3), random(1, 3, 4, 3, seed=1)
    for function in (partial, partial_math):
        heads = function(query, key, value, scale=SCALE).out.argmax(-1)
        assert heads[0, :, 0].tolist() == [0, 0, 1, 1, 2, 2]


@given(
    cuts=st.lists(st.integers(0, 11), max_size=4),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_merge_is_the_attention_over_the_union(
    cuts: list[int], heads: tuple[int, int], masked: bool, seed: int
) -> None:
    """Any cut of the keys, empty pieces included, and any visibility in which each query sees something."""
    query = random(1, heads[0], 5, 8, seed=seed)
    key, value = random(1, heads[1], 11, 8, seed=seed + 1), random(1, heads[1], 11, 8, seed=seed + 2)
    mask = torch.zeros(5, 11)
    if masked:
        mask[random(5, 11, seed=seed + 3) > 0.5] = MASKED
        mask[:, seed % 11] = 0
    edges = [0, *sorted(cuts), 11]
    parts = [
        partial(query, key[:, :, a:b], value[:, :, a:b], scale=SCALE, mask=mask[:, a:b])
        for a, b in itertools.pairwise(edges)
    ]
    assert (merge(parts).out.double() - attention(query, key, value, mask)).abs().max() < 1e-5


@given(seed=st.integers(0, 999), far=st.sampled_from([0.0, 50.0, -50.0]))
def test_merge_is_associative_and_commutative(seed: int, far: float) -> None:
    a, b, c = (Partial(random(1, 2, 3, 4, seed=seed + i), random(1, 2, 3, seed=seed + 9 + i)) for i in range(3))
    b = Partial(b.out, b.lse + far)  # one part far above or below the others
    whole = merge([a, b, c])
    for other in (merge([merge([a, b]), c]), merge([a, merge([b, c])]), merge([c, a, b])):
        assert (whole.out - other.out).abs().max() < 1e-6
        assert (whole.lse - other.lse).abs().max() < 2e-5


def test_an_empty_partial_changes_nothing() -> None:
    part = partial(random(1, 2, 3, 4), random(1, 2, 5, 4, seed=1), random(1, 2, 5, 4, seed=2), scale=SCALE)
    none = empty(part)
    for merged in (merge([part, none]), merge([none, part]), merge([part])):
        assert torch.equal(merged.out, part.out)
        assert torch.equal(merged.lse, part.lse)
    nothing = merge([none, none])
    assert torch.equal(nothing.out, torch.zeros_like(none.out))
    assert (nothing.lse == -math.inf).all()
    keyless = partial(random(1, 2, 3, 4), random(1, 2, 0, 4), random(1, 2, 0, 4), scale=SCALE)
    assert torch.equal(keyless.out, none.out)
    assert torch.equal(merge([part, keyless]).out, part.out)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [partial, partial_math])
def test_a_query_that_sees_nothing_has_no_weight(dtype: torch.dtype, function: object) -> None:
    """A fully masked row is not NaN, and in a merge it weighs nothing, in every dtype."""
    query, key, value = (random(1, 2, n, 8, seed=n, dtype=dtype) for n in (4, 6, 6))
    mask = torch.full((4, 6), masked_value(dtype), dtype=dtype)
    mask[1:] = 0  # only query 0 sees nothing
    hidden = function(query, key, value, scale=SCALE, mask=mask)  # type: ignore[operator]
    assert torch.isfinite(hidden.out).all()
    seen = partial(query, key + 1, value, scale=SCALE)
    merged = merge([hidden, seen])
    assert torch.equal(merged.out[:, :, 0], seen.out[:, :, 0])
    assert (merged.lse[:, :, 0] - seen.lse[:, :, 0]).abs().max() == 0
    assert not torch.equal(merged.out[:, :, 1:], seen.out[:, :, 1:])


def test_a_learned_sink_is_a_key_with_value_zero() -> None:
    query, key, value = random(2, 4, 3, 8), random(2, 2, 7, 8, seed=1), random(2, 2, 7, 8, seed=2)
    logit = torch.tensor([-2.0, 0.0, 3.0, 40.0])  # one head is nearly silenced
    got = learned_sink(partial(query, key, value, scale=SCALE), logit)
    scores = query.double() @ key.double().repeat_interleave(2, 1).transpose(-1, -2) * SCALE
    scores = torch.cat((scores, logit.double()[None, :, None, None].expand(2, 4, 3, 1)), dim=-1)
    weights = scores.softmax(-1)[..., :-1]
    assert (got.out.double() - weights @ value.double().repeat_interleave(2, 1)).abs().max() < 1e-6
    assert (got.lse.double() - scores.logsumexp(-1)).abs().max() < 1e-5
    # It commutes with the merge: a sink belongs to the union, not to a part.
    halves = [partial(query, key[:, :, s], value[:, :, s], scale=SCALE) for s in (slice(0, 4), slice(4, 7))]
    assert (learned_sink(merge(halves), logit).out - got.out).abs().max() < 1e-6
    # Over no keys at all the answer is zero, not NaN.
    assert torch.equal(learned_sink(empty(got), logit).out, torch.zeros_like(got.out))


def test_softcap_bounds_scores_before_the_mask() -> None:
    query, key, value = 10 * random(1, 2, 3, 8), 10 * random(1, 1, 6, 8, seed=1), random(1, 1, 6, 8, seed=2)
    mask = torch.zeros(3, 6)
    mask[:, 2] = -5.0
    got = partial(query, key, value, scale=SCALE, mask=mask, softcap=2.0)
    scores = torch.tanh(query.double() @ key.double().transpose(-1, -2) * SCALE / 2.0) * 2.0 + mask.double()
    assert (got.out.double() - scores.softmax(-1) @ value.double()).abs().max() < 1e-5
    assert got.lse.max() <= 2.0 + math.log(6)


def test_a_float32_mask_on_half_precision_is_added_in_float32() -> None:
    """An ALiBi bias of -1001 and one of -1002 are the same number in bfloat16; the older key must still lose."""
    query, key = torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16), torch.zeros(1, 1, 2, 8, dtype=torch.bfloat16)
    value = torch.tensor([0.0, 1.0], dtype=torch.bfloat16)[None, None, :, None].expand(1, 1, 2, 8)
    got = partial(query, key, value, scale=SCALE, mask=torch.tensor([[-1002.0, -1001.0]]))
    assert abs(float(got.out[0, 0, 0, 0]) - 1 / (1 + math.exp(-1))) < 4e-3


@pytest.mark.parametrize("stored", [1, 7, 24, 48])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("heads_in_mask", [None, 1, 2])
def test_the_form_for_compilers_is_the_same(stored: int, softcap: float | None, heads_in_mask: int | None) -> None:
    """Whatever number of pieces its sums are cut into."""
    query, key, value = random(3, 2, 4, 8), random(3, 2, stored, 8, seed=1), random(3, 2, stored, 8, seed=2)
    mask = None
    if heads_in_mask:
        mask = torch.zeros(3, heads_in_mask, 1, stored)
        mask[:, :, :, stored // 2 + 1 :] = MASKED
    got = partial_loops(query, key, value, scale=SCALE, mask=mask, softcap=softcap)
    expected = partial_math(query, key, value, scale=SCALE, mask=mask, softcap=softcap)
    assert (got.out - expected.out).abs().max() < 1e-6
    assert (got.lse - expected.lse).abs().max() < 1e-5
    half = partial_loops(*(x.bfloat16() for x in (query, key, value)), scale=SCALE, mask=mask, softcap=softcap)
    assert half.out.dtype == torch.bfloat16
    assert (half.out.float() - expected.out).abs().max() < 3e-2


def test_values_may_be_wider_than_keys() -> None:
    query, key, value = random(1, 4, 3, 8), random(1, 2, 5, 8, seed=1), random(1, 2, 5, 12, seed=2)
    got = partial(query, key, value, scale=SCALE)
    assert got.out.shape == (1, 4, 3, 12)
    assert (got.out.double() - attention(query, key, value)).abs().max() < 1e-6
