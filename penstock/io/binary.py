"""Is it text?  Looks at the beginning of a stream, however its bytes arrive."""

from __future__ import annotations

import codecs
import re

from penstock.errors import InputError

HEAD = 1 << 16
"""Bytes that are looked at.  What comes later is read as it is: one odd byte must not end a stream of days."""

_ENOUGH = 256  # characters after which a share of bad ones means something
_LARGEST_SHARE = 0.3
_ODD = re.compile("[\ufffd\x01-\x06\x0e-\x1a\x1c-\x1f\x7f]")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class TextCheck:
    """Raises InputError from `push` as soon as the bytes so far are not UTF-8 text.

    A zero byte, or many invalid bytes and control characters, mean binary data.  A few invalid bytes are let pass:
    they are read as U+FFFD.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._seen = 0
        self._chars = 0
        self._odd = 0

    def push(self, data: bytes, end: bool = False) -> None:
        """Look at the next bytes; `end` when none will follow."""
        if self._seen == 0 and data.startswith(_UTF16):
            raise InputError(f"{self.name} is UTF-16, not UTF-8: convert it with iconv -f UTF-16 -t UTF-8.")
        if self._seen >= HEAD:
            return
        data = data[: HEAD - self._seen]
        self._seen += len(data)
        text = self._decoder.decode(data, end)
        self._chars += len(text)
        self._odd += len(_ODD.findall(text))
        judged = end or self._chars >= _ENOUGH
        if 0 in data or (judged and self._odd > _LARGEST_SHARE * self._chars):
            raise InputError(f"{self.name} is binary data, not text: give UTF-8 text.")
