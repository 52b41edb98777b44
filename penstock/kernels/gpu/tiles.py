"""What the kernels share on the device: rotation while loading, the running softmax, storing in a number format."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_turned(
    x: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    channel: tl.tensor,
    inside: tl.tensor,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
) -> tl.tensor:
    """[R, C] float32: vectors at pointers x [R, 1], rotated by the angles at cos and sin [R, 1]; channel [1, C]."""
    if INTERLEAVED:
        partner = channel ^ 1
        frequency = channel // 2
        sign = tl.where(channel % 2 == 0, -1.0, 1.0)
    else:
        partner = tl.where(channel < HALF, channel + HALF, channel - HALF)
        frequency = tl.where(channel < HALF, channel, channel - HALF)
        sign = tl.where(channel < HALF, -1.0, 1.0)
    turns = inside & (channel < 2 * HALF)
    own = tl.load(x + channel, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(x + partner, mask=turns, other=0.0).to(tl.float32)
    c = tl.load(cos + frequency, mask=turns, other=1.0)
    s = tl.load(sin + frequency, mask=turns, other=0.0)
    return own * c + sign * other * s


@triton.jit
def to_e4m3(x: tl.tensor) -> tl.tensor:
    """The nearest numbers of e4m3, ties to even, as float32; beyond 448 cut off.

    Rounded here and not by the conversion, which is then exact wherever it runs: Triton's interpreter loses a carry.
    """
    x = tl.minimum(tl.maximum(x, -448.0), 448.0)
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000  # three bits behind the first
    small = (x + 24576.0) - 24576.0  # below 2**-6 numbers are 2**-9 apart
    return tl.where(tl.abs(x) < 0.015625, small, bits.to(tl.float32, bitcast=True))


@triton.jit
def store_as(to: tl.tensor, x: tl.tensor, inside: tl.tensor, scale: tl.tensor, SCALED: tl.constexpr) -> None:
    """Store x in the format of `to`: e4m3 with a scale, else any other."""
    if SCALED:
        x = to_e4m3(x.to(tl.float32) / scale)
    tl.store(to, x.to(to.dtype.element_ty), mask=inside)


@triton.jit
def fold(
    top: tl.tensor, total: tl.tensor, out: tl.tensor, query: tl.tensor, key: tl.tensor, value: tl.tensor,
    visible: tl.tensor, scale: tl.tensor, softcap: tl.tensor,
    CAPPED: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """One block of keys into a running softmax: top and total [M], out [M, C]; query [M, C], key and value [T, C].

    The same step as in Milakov and Gimelshein, arXiv:1805.02867; a query that has seen nothing has top -inf, total 0.
    """
    score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    if CAPPED:
        score = (1.0 - 2.0 / (tl.exp(2.0 * score / softcap) + 1.0)) * softcap  # tanh
    score = tl.where(visible, score, float("-inf"))
    higher = tl.maximum(top, tl.max(score, 1))
    finite = tl.where(higher == float("-inf"), 0.0, higher)
    weight = tl.exp(score - finite[:, None])
    keep = tl.exp(top - finite)
    total = total * keep + tl.sum(weight, 1)
    out = out * keep[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
    return higher, total, out


@triton.jit
def store_partial(
    outs: tl.tensor, lses: tl.tensor, place: tl.tensor, real: tl.tensor, top: tl.tensor, total: tl.tensor,
    out: tl.tensor, channel: tl.tensor,
    WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """Partials (out, lse) of queries [M] at their places; one that saw nothing is zero, with lse -inf."""
    seen = total > 0.0
    some = tl.where(seen, total, 1.0)
    tl.store(lses + place, tl.where(seen, top + tl.log(some), float("-inf")), mask=real)
    inside = real[:, None] & (channel[None, :] < WIDTH)
    tl.store(outs + place[:, None] * WIDTH + channel[None, :], out / some[:, None], mask=inside)
