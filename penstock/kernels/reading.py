"""Some tokens read all that the parts of a memory offer, in one native call: the exact merge of memory/reading.py.

Keys and values are read where they are, in whatever tensors a part keeps them; 8 and 4 bit codes are read as codes, raw
keys are turned on the way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from penstock.kernels import library as lib
from penstock.kernels.weights import KINDS
from penstock.memory.attend import Partial
from penstock.memory.codec import Int4, Int8, Integers
from penstock.memory.coded import Groups
from penstock.memory.lending import Lent
from penstock.memory.parts import Additive, Offer, Packed, Place, Query, Readable, Stored
from penstock.memory.positions import Angles, Rotary
from penstock.memory.reading import Reader, decoded

_PER_THREAD = 1 << 17  # bytes of keys and values that are worth another thread
_TABLES = 16  # rotations of runs of positions that are kept


class Reading:
    """Reads for one memory; takes the place of Reader.read in a plan."""

    def __init__(self) -> None:
        self._library = lib.library()
        self._offers: Any = (lib.OfferOf * 8)()
        self._own = lib.ReadingOf()
        self._work = torch.empty(0)
        self._tables: dict[Any, Angles] = {}  # of runs of keys, by encoding, first position and count
        self._points: dict[Any, Angles] = {}  # of queries
        self._keep: list[Any] = []

    def read(self, reader: Reader, offers: Iterable[Offer], query: Query) -> tuple[Partial, Tensor | None]:
        """As Reader.read."""
        place = reader.place
        if reader.literal or reader.softcap is not None or not isinstance(place.encoding, Rotary):
            return reader.read(offers, query)
        extra: Tensor | None = None
        count = 0
        with ExitStack() as borrowed:
            for offer in offers:
                if isinstance(offer, Additive):
                    extra = offer.out if extra is None else extra + offer.out
                    continue
                more = None
                if isinstance(offer, Packed) and _readable_codes(offer, place):
                    more = self._packed(count, offer, query)
                elif isinstance(offer, Stored) and not reader.cascade.blind:
                    more = self._stored(count, offer, borrowed.enter_context(offer.lend()), query)
                if more is None:
                    for one in decoded((offer,)):
                        assert isinstance(one, Readable)
                        count = self._plain(count, one, reader, query)
                count = count if more is None else more
            part = self._run(count, reader, query)
        self._keep.clear()
        return part, extra

    def _run(self, count: int, reader: Reader, query: Query) -> Partial:
        place, raw, own = reader.place, query.raw, self._own
        heads, tokens, width = raw.shape
        rotary = place.encoding
        assert isinstance(rotary, Rotary)
        if raw.stride(2) != 1:
            raw = raw.contiguous()
        slots = sum(self._offers[i].count for i in range(count))
        work = slots * tokens * place.heads * width * 2 * place.dtype.itemsize
        out = torch.empty(1, heads, tokens, width, dtype=place.dtype)
        lse = torch.empty(1, heads, tokens)
        own.query, own.query_head = raw.data_ptr(), raw.stride(0) * raw.element_size()
        own.query_token, own.tokens = raw.stride(1) * raw.element_size(), tokens
        own.offers, own.offer_count = ctypes.addressof(self._offers), count
        own.out, own.lse = out.data_ptr(), lse.data_ptr()
        own.scale, own.heads, own.kv_heads, own.width = reader.scale, heads, place.heads, width
        own.half, own.interleaved = rotary.inv_freq.numel(), int(rotary.interleaved)
        own.stored, own.threads = KINDS[place.dtype], max(1, min(torch.get_num_threads(), work // _PER_THREAD))
        room = own.threads * self._library.pk_read_room(ctypes.byref(own))
        if self._work.numel() < room:
            self._work = torch.empty(room)
        own.work = self._work.data_ptr()
        self._library.pk_read(ctypes.byref(own))
        return Partial(out, lse)

    def _next(self, count: int, query: Query) -> Any:
        """The offer behind `count` others: one that all queries read, with nothing that few offers have."""
        if count == len(self._offers):
            more = (lib.OfferOf * (2 * count))()
            ctypes.memmove(more, self._offers, ctypes.sizeof(self._offers))
            self._offers = more
        own = self._offers[count]
        own.key_cos = own.key_sin = own.bias = own.blocks = None
        own.first, own.last, own.causal = 0, len(query), False
        return own

    def _plain(self, count: int, offer: Readable, reader: Reader, query: Query) -> int:
        """Add keys and values; gives the number of offers."""
        first, last, _ = slice(*offer.queries).indices(len(query))
        if first >= last or not offer.key.shape[1]:
            return count
        own, place = self._next(count, query), reader.place
        key, value = _rows(offer.key), _rows(offer.value)
        if not offer.turned and bool(offer.position.any()):
            run = _run_of(offer.position)
            if run is None:
                key = place.turn(key, offer.position)
            else:
                table = self._table(place.encoding, run, key.shape[1])
                own.key_cos, own.key_sin = table.cos.data_ptr(), table.sin.data_ptr()
        if offer.causal:
            own.causal, offer = True, replace(offer, causal=False)
        bias = reader.mask(offer, query, torch.float32)  # [queries, T], [H, queries, T] or [Hq, queries, T]
        if bias is not None:
            bias = bias if bias.stride(-1) == 1 else bias.contiguous()
            each = bias.stride(0) if bias.dim() == 3 and bias.shape[0] > 1 else 0
            apart = bool(each) and bias.shape[0] != place.heads
            own.bias, own.bias_token = bias.data_ptr(), bias.stride(-2)
            own.bias_head, own.bias_member = (each * place.group, each) if apart else (each, 0)
            self._keep.append(bias)
        own.key, own.key_head = key.data_ptr(), key.stride(0) * key.element_size()
        own.value, own.value_head = value.data_ptr(), value.stride(0) * value.element_size()
        own.count, own.kind = key.shape[1], KINDS[key.dtype]
        self._keep += [key, value]
        own.query_cos, own.query_sin, own.query_step = self._here(offer.query_at, query)
        own.first, own.last = first, last
        return count + 1

    def _packed(self, count: int, offer: Packed, query: Query) -> int:
        """Add coded groups, one offer each."""
        size, encoding = offer.keys.size, query.place.encoding
        table = self._table(encoding, offer.first, len(offer.keys) * size)
        cos, sin, each = table.cos.data_ptr(), table.sin.data_ptr(), 4 * size * table.cos.shape[1]
        width, codec, here = offer.keys.width, offer.keys.codec, self._here(offer.query_at, query)
        shared = offer.values.codec.size.bit_length() - 1
        for i, (of_keys, of_values) in enumerate(zip(_addresses(offer.keys), _addresses(offer.values))):
            own = self._next(count, query)
            own.key, own.key_scale, own.key_zero = of_keys
            own.value, own.value_scale, own.value_zero = of_values
            own.key_cos, own.key_sin = cos + i * each, sin + i * each
            own.count, own.kind, own.shared = size, codec.bits, shared
            own.key_head = own.value_head = size * width * codec.bits // 8
            own.query_cos, own.query_sin, own.query_step = here
            count += 1
        return count

    def _stored(self, count: int, offer: Stored, lent: Lent | None, query: Query) -> int | None:
        """Add blocks where they lie; None if they are not to be had so."""
        if lent is None:
            return None
        own, layout = self._next(count, query), lent.layout
        own.key = own.value = None
        own.count, own.block, own.kind = len(lent) * layout.block, layout.block, KINDS[layout.place.dtype]
        if offer.first is not None:
            table = self._table(query.place.encoding, offer.first, own.count)
            own.key_cos, own.key_sin = table.cos.data_ptr(), table.sin.data_ptr()
        own.blocks, own.blocks_head = lent.addresses.ctypes.data, len(lent) if lent.addresses.ndim == 2 else 0
        own.key_at, own.key_head = layout.bytes_of("key").start, layout.head_bytes("key")
        own.value_at, own.value_head = layout.bytes_of("value").start, layout.head_bytes("value")
        own.query_cos, own.query_sin, own.query_step = self._here(offer.query_at, query)
        self._keep.append(lent)
        return count + 1

    def _here(self, at: Tensor, query: Query) -> tuple[int, int, int]:
        """Where the rotations to the queries' positions lie, and the floats from one to the next."""
        where = at.tolist()
        where = where[:1] if len(set(where)) == 1 else where
        encoding = query.place.encoding
        assert isinstance(encoding, Rotary)
        table = self._kept((id(encoding), *where), self._points, lambda: encoding.angles(torch.tensor(where)))
        return table.cos.data_ptr(), table.sin.data_ptr(), table.cos.shape[1] if len(where) > 1 else 0

    def _table(self, encoding: Any, first: int, count: int) -> Angles:
        """Rotations to `count` positions from `first` on: [count, half]."""
        key = (id(encoding), first, count)
        return self._kept(key, self._tables, lambda: encoding.angles(torch.arange(first, first + count)))

    def _kept(self, key: Any, kept: dict[Any, Angles], make: Callable[[], Angles]) -> Angles:
        found = kept.get(key)
        if found is None:
            angles = make()
            found = kept[key] = Angles(angles.cos.contiguous(), angles.sin.contiguous())
            if len(kept) > _TABLES:
                self._keep.append(kept.pop(next(iter(kept))))  # an offer may point into it
        return found


def _rows(x: Tensor) -> Tensor:
    """[H, T, D] with each head's rows one behind the other."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _run_of(position: Tensor) -> int | None:
    """The first of the consecutive positions [H, T] that all heads have, or None."""
    first = int(position[0, 0])
    run = torch.arange(first, first + position.shape[1])
    return first if bool((position == run).all()) else None


def _readable_codes(offer: Packed, place: Place) -> bool:
    """Whether the codes are those that the library reads: integers, keys by channel over a group, values by token."""
    keys, values = offer.keys.codec, offer.values.codec
    return (
        type(keys) in (Int4, Int8)
        and type(values) is type(keys)
        and isinstance(values, Integers)
        and (keys.per, values.per) == ("channel", "token")
        and keys.scales == values.scales == "float16"
        and keys.size == offer.keys.size == offer.values.size
        and values.size >= 16
        and values.size & (values.size - 1) == 0
        and place.layer.key_width % values.size == 0
        and place.layer.key_width % 32 == 0
    )


def _addresses(groups: Groups) -> list[tuple[int, int, int]]:
    """Codes, scales and zeros of each group; found once, for groups never change."""
    found: list[tuple[int, int, int]] | None = groups.__dict__.get("_addresses")
    if found is None:
        assert all(t.is_contiguous() for t in groups.tensors())
        found = [(p["codes"].data_ptr(), p["scale"].data_ptr(), p["zero"].data_ptr()) for p in groups.pieces]
        groups.__dict__["_addresses"] = found
    return found
