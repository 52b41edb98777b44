"""What was freed goes back to the system: a server of 500 sessions grew while the bytes in use stayed the same."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from penstock.engine import allocator, attic

_GROWS_AND_SHRINKS = """
import ctypes, psutil
from penstock.engine.allocator import give_back, share_arenas
share_arenas()
kept = [ctypes.create_string_buffer(40_000) for _ in range(2_000)]  # 80 MB, too small for maps of their own
kept.append(ctypes.create_string_buffer(8))
for piece in kept[:-1]: ctypes.memset(piece, 1, 40_000)
between = kept[::50]  # pieces in use all over the heap: its end cannot be cut off
del kept[:], piece
process = psutil.Process()
before = process.memory_info().rss
give_back()
print(before - process.memory_info().rss)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library is not glibc")
def test_freed_pages_between_pieces_in_use_go_back() -> None:
    done = subprocess.run([sys.executable, "-c", _GROWS_AND_SHRINKS], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 50e6


def test_a_library_without_these_calls_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: SimpleNamespace())
    allocator.share_arenas()
    allocator.give_back()


def test_an_attic_tidies_up_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(attic, "_TIDY", 3)
    monkeypatch.setattr(attic.allocator, "give_back", lambda: calls.append(len(calls)))
    place = attic.Attic(10_000, None)
    for _ in range(7):
        place.drop(place.put({"a": torch.zeros(4)}, 1))
    assert len(calls) == 2
