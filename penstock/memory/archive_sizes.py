"""What an archive takes of main memory, and how long its runs may be for that."""

from __future__ import annotations

from typing import NamedTuple

_RUN = 16384  # entries in a run, where main memory allows it
_LEAST = 16  # blocks in a run
_SHARE = 4  # of an archive's main memory, one part in so many is for the summaries of the open run


class Sizes(NamedTuple):
    """What an archive takes of main memory."""

    row: int  # bytes of a row of its store
    each: int  # rows per block
    summary: int  # bytes of a block's summary
    listed: int  # bytes of a block in the index

    def fixed(self, run: int, centres: int) -> int:
        """Bytes of what does not grow: summaries and codes of an open run, centres, and lists of a run to come."""
        return run * (self.summary + 2 * self.listed) + centres

    @property
    def least(self) -> int:
        """Bytes with which an archive is worth something."""
        return _LEAST * (_SHARE * (self.summary + 3 * self.listed) + 2 * self.row * self.each)

    def run(self, share: int, block: int) -> int:
        """Blocks of a run, a power of two."""
        most = min(max(_LEAST, _RUN // block), max(1, share // _SHARE // self.summary))
        return max(_LEAST, 1 << most.bit_length() - 1)
