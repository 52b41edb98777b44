"""The header beside each block on the disk: whose it is, which it is, and what its content hashes to.

A read block is believed only if its header is the expected one, byte for byte, and its content has the checksum that
was taken when it was written.  A file of another session, of another generation, or with its blocks exchanged fails
the first test; an altered one the second.
"""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MAGIC = b"penstkB1"
SIZE = 128  # bytes, the rest is zero
_FIELDS = struct.Struct("<8s16s16sqqq16s")
_CHECKSUM = slice(_FIELDS.size - 16, _FIELDS.size)
_NAMES = ("format", "session", "store", "generation", "block id", "length", "checksum")


def digest(data: bytes | memoryview) -> bytes:
    """16 bytes of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=16).digest()


@lru_cache(maxsize=4096)
def _named(name: str) -> bytes:
    return digest(name.encode())


def pack(session: str, label: str, generation: int, index: int, length: int, checksum: bytes) -> bytes:
    """The header of a block of `length` bytes."""
    fields = (MAGIC, _named(session), _named(label), generation, index, length, checksum)
    return _FIELDS.pack(*fields).ljust(SIZE, b"\0")


def has_checksum(content: NDArray[np.uint8], header: bytes) -> bool:
    """Whether the content is what the header says."""
    return digest(content.data) == header[_CHECKSUM]


def difference(found: bytes, expected: bytes) -> str:
    """In words, how a header differs from the expected one."""
    pairs = zip(_NAMES, _FIELDS.unpack_from(found), _FIELDS.unpack_from(expected))
    other = [name for name, a, b in pairs if a != b]
    if "format" in other:
        return "its header is damaged"
    return f"the file holds a block of another {other[0]}" if other else "its header is damaged"
