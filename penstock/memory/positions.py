"""Positions: the index a key or a query carries, and what it does to them.

`seen` is the index in the stream; a *position* is what the rotary embedding (or the ALiBi bias) is given.  Keys and
queries arrive raw: the model was run at position 0, where every rotary embedding is the identity (times a constant
that scaled variants apply to both).  We rotate them here, to any position, with angles computed in float64 on the
host.  The relative angle of two entries is therefore exact to float32 rounding at any position below 2**53, and no
stored key ever has to be re-based.

Policies (how the sinks of a bounded memory are numbered; the window is always at its stream positions):

    stream      a sink keeps its index in the stream: its distance grows for ever
    clamped     a sink's distance stops growing when the memory is full (StreamingLLM, two-part form)
    contiguous  all stored entries are renumbered 0..n-1 (StreamingLLM, cache-rank form).  For sinks + window the
                relative distances equal those of `clamped`, so both run the same code; `naive.py` renumbers for real.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

POLICIES = ("stream", "clamped", "contiguous")
_FAR = 1 << 26  # from this position on, angles are computed in two parts


class Angles(NamedTuple):
    """Rotations as float32 `cos` and `sin`, each [..., R/2] for a rotary width of R."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, eq=False)
class Rotary:
    """A rotary embedding as probed from a layer: frequencies, layout, width.

    `inv_freq` [R/2] float64 holds radians per position; `axis` [R/2] names the position axis of each frequency (one
    axis for text, three for time, height and width).  `interleaved` pairs (0,1), (2,3), ...; otherwise (i, i + R/2).
    Channels past R pass unchanged.
    """

    inv_freq: Tensor
    interleaved: bool = False
    axis: Tensor | None = None

    @property
    def width(self) -> int:
        return 2 * self.inv_freq.numel()

    def angles(self, positions: Tensor, device: torch.device | str = "cpu") -> Angles:
        """Rotations to integer `positions` [..., T] (or [axes, ..., T] when `axis` is set)."""
        index = positions[..., None] if self.axis is None else torch.movedim(positions, 0, -1)[..., self.axis]
        low = index % _FAR
        theta = low.double() * self.inv_freq
        cos, sin = theta.cos(), theta.sin()
        if not torch.equal(low, index):
            # Turn by the far part too.  Its product with the leading 24 bits of a frequency is exact in float64; the
            # product with the frequency itself is off by 1e-4 radians at position 2**40.
            leading = self.inv_freq.float().double()
            coarse = (index - low).double() * leading
            fine = (index - low).double() * (self.inv_freq - leading)
            turn = torch.polar(torch.ones_like(coarse), coarse) * torch.polar(torch.ones_like(fine), fine)
            turned = torch.complex(cos, sin) * turn
            cos, sin = turned.real, turned.imag
        return Angles(cos.float().to(device), sin.float().to(device))

    def rotate(self, x: Tensor, angles: Angles) -> Tensor:
        """Rotate x [..., D] by angles that broadcast to [..., R/2]; float32 inside (float64 stays), dtype of x out."""
        half = self.inv_freq.numel()
        cos, sin = angles
        wide = x if x.dtype == torch.float64 else x.float()
        if self.interleaved:
            a, b = wide[..., 0 : 2 * half : 2], wide[..., 1 : 2 * half : 2]
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
        else:
            a, b = wide[..., :half], wide[..., half : 2 * half]
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        turned = turned.to(x.dtype)
        return turned if x.shape[-1] == 2 * half else torch.cat((turned, x[..., 2 * half :]), dim=-1)


@dataclass(frozen=True, eq=False)
class Alibi:
    """A bias per head that grows with distance: slope[h] * (key position - query position)  (arXiv:2108.12409)."""

    slopes: Tensor  # [Hq] float32

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """[..., Hq, C, T] from query positions [..., C] and key positions [..., T]."""
        distance = (key_positions[..., None, :] - query_positions[..., :, None]).to(torch.float32)
        return self.slopes[:, None, None] * distance[..., None, :, :]


Encoding = Rotary | Alibi | None


def sink_shift(last_position: int, budget: int, policy: str) -> int:
    """How far sinks are moved forward when the newest entry stands at `last_position` (0 while nothing was evicted).

    With the sink at j + shift and the query at its stream position, the distance is that of the policy.
    """
    return 0 if policy == "stream" else max(0, last_position - (budget - 1))


def sink_query_positions(positions: Tensor, budget: int, policy: str) -> Tensor:
    """The same distance seen from the other side: sinks stay at j, the query moves to this position."""
    return positions if policy == "stream" else positions.clamp(max=budget - 1)
