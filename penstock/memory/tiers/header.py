"""The header beside each block on the disk: whose it is, which it is, and what its content hashes to.

A read block is believed only if its header is the expected one, byte for byte, and its content has the checksum that
was taken when it was written.  A file of another session, of another generation, or with its blocks exchanged fails
the first test; an altered one the second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"penstkB1"
SIZE = 128  # bytes, the rest is zero
_FIELDS: list[tuple[str, str]] = [
    ("format", "V8"), ("session", "V16"), ("store", "V16"), ("generation", "<i8"), ("block id", "<i8"),
    ("length", "<i8"), ("checksum", "V16"),
]  # fmt: skip
_HEADER = np.dtype([*_FIELDS, ("nothing", "V48")])
assert _HEADER.itemsize == SIZE
_END = SIZE - 48  # of the checksum


def digest(data: bytes | memoryview) -> bytes:
    """16 bytes of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=16).digest()


@lru_cache(maxsize=4096)
def _named(name: str) -> bytes:
    return digest(name.encode())


def pack(
    session: str, labels: Sequence[str], which: NDArray[np.integer[Any]], generation: NDArray[np.int64],
    index: NDArray[np.int64], length: int, checksum: NDArray[np.void],
) -> NDArray[np.uint8]:  # fmt: skip
    """The headers [n, SIZE] of blocks of `length` bytes; the store of each is `labels[which]`."""
    out = np.zeros(len(index), dtype=_HEADER)
    out["format"], out["session"] = np.void(MAGIC), np.void(_named(session))
    out["store"] = np.array([np.void(_named(label)) for label in labels], dtype="V16")[which]
    out["generation"], out["block id"], out["length"], out["checksum"] = generation, index, length, checksum
    return out.view(np.uint8).reshape(len(out), SIZE)


def checksums(headers: NDArray[np.uint8]) -> list[bytes]:
    """Of the contents behind headers [n, SIZE]."""
    whole = headers.tobytes()
    return [whole[end - 16 : end] for end in range(_END, len(whole) + 1, SIZE)]


def difference(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> str:
    """In words, how a header [SIZE] differs from the expected one."""
    one, two = found.view(_HEADER), expected.view(_HEADER)
    other = [name for name, _ in _FIELDS if one[name].tobytes() != two[name].tobytes()]
    if "format" in other:
        return "its header is damaged"
    return f"the file holds a block of another {other[0]}" if other else "its header is damaged"
