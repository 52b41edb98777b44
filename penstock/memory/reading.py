"""Reading what parts offer: a merge of partials, or, as its specification, one softmax over everything in float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.memory.attend import MASKED, Partial, masked_value, merge, partial, partial_math
from penstock.memory.cascade import Cascade
from penstock.memory.parts import Additive, Offer, Packed, Place, Query, Readable, Stored, alibi_bias
from penstock.memory.positions import Rotary


@dataclass(frozen=True)
class Reader:
    """How one branch of a layer is read."""

    cascade: Cascade
    place: Place
    scale: float
    softcap: float | None
    literal: bool = False

    def read(self, offers: Iterable[Offer], query: Query) -> tuple[Partial, Tensor | None]:
        """The merged partial over all offers [1, Hq, C, ...], and the sum of the additive ones."""
        if self.literal:
            return self._literal(decoded(offers), query)
        whole: Partial | None = None
        extra: Tensor | None = None
        for offer in decoded(offers):
            if isinstance(offer, Additive):
                extra = offer.out if extra is None else extra + offer.out
                continue
            part = self._partial(offer, query)
            start, stop = offer.queries
            if whole is None:
                whole = part  # the tail, which all queries read
            elif (start, stop) == (0, None):
                whole = merge([whole, part])
            else:
                some = merge([Partial(whole.out[:, :, start:stop], whole.lse[:, :, start:stop]), part])
                out, lse = whole.out.clone(), whole.lse.clone()
                out[:, :, start:stop], lse[:, :, start:stop] = some.out, some.lse
                whole = Partial(out, lse)
        assert whole is not None
        return whole, extra

    def _keys(self, offer: Readable) -> Tensor:
        return offer.key if offer.turned else self.place.turn(offer.key, offer.position)

    def _partial(self, offer: Readable, query: Query) -> Partial:
        start, stop = offer.queries
        some = query.to(offer.query_at)[:, start:stop] if offer.queries != (0, None) else query.to(offer.query_at)
        key, value = self._keys(offer)[None], offer.value[None]
        heads, count, group = self.place.heads, some.shape[1], self.place.group
        mask = self.mask(offer, query, some.dtype)
        if count == 1 and group > 1:  # the heads of a group become the queries of one call: keys are loaded once
            grouped = some.reshape(1, heads, group, some.shape[-1])
            if mask is not None and mask.dim() == 3:
                mask = mask.reshape(1, heads, group, -1) if mask.shape[0] != heads else mask[None]
            part = partial(grouped, key, value, scale=self.scale, mask=mask, softcap=self.softcap)
            return Partial(part.out.reshape(1, heads * group, 1, -1), part.lse.reshape(1, heads * group, 1))
        if mask is not None and mask.dim() == 3:
            mask = (mask.repeat_interleave(group, 0) if mask.shape[0] == heads else mask)[None]
        return partial(some[None], key, value, scale=self.scale, mask=mask, softcap=self.softcap)

    def mask(self, offer: Readable, query: Query, dtype: torch.dtype) -> Tensor | None:
        """Additive: [C, T], [H, C, T], or [Hq, C, T] where positions are a bias; None if all is seen as it is."""
        hidden = self._hidden(offer, query)
        alibi = alibi_bias(self.place, offer.query_at[slice(*offer.queries)], offer.position)
        if alibi is None and offer.bias is None and hidden is None:
            return None
        if alibi is None and offer.bias is None:
            assert hidden is not None
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, masked_value(dtype))
            return mask.to(self.place.device)
        total = alibi if alibi is not None else torch.zeros(1, device=self.place.device)
        if offer.bias is not None:
            bias = offer.bias[:, None, :]  # [H, 1, T]
            total = total + (bias.repeat_interleave(self.place.group, 0) if alibi is not None else bias)
        if total.dim() == 3 and total.shape[1] == 1:
            count = len(offer.query_at[slice(*offer.queries)])
            total = total.expand(total.shape[0], count, total.shape[2])
        if hidden is not None:
            total, hidden = self._alike(total, hidden)
            total = total.masked_fill(hidden.to(total.device), MASKED)
        return total.float() if alibi is not None or dtype != torch.float32 else total.to(dtype)

    def _hidden(self, offer: Readable, query: Query) -> Tensor | None:
        """[C, T] or [H, C, T] bool: what queries may not see."""
        hidden = None if offer.mask is None else ~offer.mask
        if offer.causal:
            n, c = offer.key.shape[1], len(offer.query_at)
            later = torch.arange(n) > torch.arange(n - c, n)[:, None]
            hidden = later if hidden is None else hidden | later
        if self.cascade.blind and offer.kind is not None:
            kinds = query.kind[slice(*offer.queries)]
            for asking, other in self.cascade.blind:
                pair = (kinds == asking)[None, :, None] & (offer.kind == other)[:, None, :]
                if hidden is not None:
                    hidden, pair = self._alike(hidden, pair)
                hidden = pair if hidden is None else hidden | pair
        return hidden

    def _alike(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Both by query heads where one of them is."""
        if a.dim() == b.dim() == 3 and a.shape[0] != b.shape[0]:
            group = self.place.group
            return (a, b.repeat_interleave(group, 0)) if a.shape[0] > b.shape[0] else (a.repeat_interleave(group, 0), b)
        return a, b

    def _literal(self, offers: Iterable[Readable | Additive], query: Query) -> tuple[Partial, Tensor | None]:
        """One query at a time (C is 1): rotate everything in float64, one softmax over the union."""
        keys, values, biases, queries = [], [], [], []
        extra: Tensor | None = None
        heads, group = self.place.heads, self.place.group
        for offer in offers:
            if isinstance(offer, Additive):
                extra = offer.out if extra is None else extra + offer.out
                continue
            key, value = offer.key.double(), offer.value.double()
            raw = query.raw.double()
            if isinstance(self.place.encoding, Rotary) and key.shape[1]:
                if offer.turned:
                    key = _turned(self.place.encoding, key, -offer.position)
                # One softmax, one rotation per key: by its distance to the query as the frame numbers them.
                key = _turned(self.place.encoding, key, offer.position - offer.query_at[-1])
            mask = self.mask(offer, query, torch.float32)
            bias = torch.zeros(heads * group, key.shape[1], dtype=torch.float64)
            if mask is not None:
                flat = mask.double().reshape(-1, mask.shape[-1])
                bias = bias + (flat.repeat_interleave(group, 0) if flat.shape[0] == heads else flat)
            keys.append(key)
            values.append(value)
            biases.append(bias)
            queries.append(raw)
        part = partial_math(
            queries[0][None], torch.cat(keys, 1)[None], torch.cat(values, 1)[None], scale=self.scale,
            mask=torch.cat(biases, 1)[None, :, None], softcap=self.softcap,
        )  # fmt: skip
        return part, extra


def decoded(offers: Iterable[Offer]) -> Iterator[Readable | Additive]:
    """Codes are decoded."""
    for offer in offers:
        if isinstance(offer, Packed | Stored):
            yield from offer.plain()
        else:
            yield offer


def _turned(encoding: Rotary, x: Tensor, positions: Tensor) -> Tensor:
    """Rotate x [H, T, D] to positions [H, T] in float64."""
    turns = positions.double()[..., None] * encoding.inv_freq
    half = turns.shape[-1]
    turn = torch.polar(torch.ones_like(turns), turns)
    if encoding.interleaved:
        pairs = torch.view_as_complex(x[..., : 2 * half].reshape(*x.shape[:-1], half, 2).contiguous())
        out = torch.view_as_real(pairs * turn).flatten(-2)
    else:
        pairs = torch.complex(x[..., :half], x[..., half : 2 * half]) * turn
        out = torch.cat((pairs.real, pairs.imag), dim=-1)
    return torch.cat((out, x[..., 2 * half :]), dim=-1)
