"""What becomes of memory that was freed: in the C library, where it is glibc, and in Python.

A process that lives for weeks frees as much as it takes and still grows: freed pieces lie between pieces in use, and
what a thread frees stays in that thread's arena.  Measured with 500 sessions that come and go (`bench.serve --only
live`): bytes in use stay the same while the resident set climbs.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator

_ARENA_MAX = -8  # of mallopt


@contextlib.contextmanager
def _glibc() -> Iterator[ctypes.CDLL]:
    """The C library; what it lacks ends the block silently."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        yield ctypes.CDLL(None)


def share_arenas() -> None:
    """Let all threads allocate from one arena, so that one takes what another freed.  To be called early."""
    with _glibc() as library:
        library.mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """Return whole freed pages to the system; milliseconds for a hundred megabytes."""
    with _glibc() as library:
        library.malloc_trim(0)


def set_apart() -> None:
    """Leave all that lives now out of Python's search for garbage; to be called when a server is ready.

    Python looks through everything only when a fourth of it is new.  Beside a model's hundred thousands of objects that
    lets megabytes of closed sessions lie (two thousand connections, 4 MB), and each look takes a tenth of a second.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # what is left is counted anew
