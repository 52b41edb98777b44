"""Codecs: entries in fewer bytes, with a stated error."""

from penstock.memory.codec.base import Codec, Field, Piece
from penstock.memory.codec.bit_planes import BitPlanes, pack_bits, unpack_bits
from penstock.memory.codec.block_float import BlockFloat, channel_order, inverse, permuted
from penstock.memory.codec.floats import Floats
from penstock.memory.codec.integers import Int4, Int8, Integers

__all__ = [
    "BitPlanes",
    "BlockFloat",
    "Codec",
    "Field",
    "Floats",
    "Int4",
    "Int8",
    "Integers",
    "Piece",
    "channel_order",
    "inverse",
    "pack_bits",
    "permuted",
    "unpack_bits",
]
