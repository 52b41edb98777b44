from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from penstock.worlds.quiet import holder, quiet, wait_for_quiet


def test_the_lock_is_there_inside_the_block_only(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with quiet(path):
        assert holder(path) == os.getpid()
        assert wait_for_quiet(path=path, timeout=5) == 0.0  # its own process does not wait for itself
    assert not path.exists()


def test_the_lock_is_removed_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    try:
        with quiet(path):
            raise ValueError
    except ValueError:
        pass
    assert not path.exists()


def test_training_waits_for_a_live_process_and_goes_on_when_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    path.write_text(str(process.pid))
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            process.communicate(b"")

    assert wait_for_quiet(path=path, poll=2.0, sleep=sleep) == 6.0
    path.write_text(str(process.pid))
    assert holder(path) is None  # a stale lock


def test_waiting_ends_at_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(str(os.getppid()))
    assert wait_for_quiet(path=path, poll=0.5, timeout=1.0, sleep=lambda _: None) == 1.0


def test_damaged_locks_count_as_none(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for content in ("", "abc", "-5", "0"):
        path.write_text(content)
        assert holder(path) is None
    with quiet(path):
        assert holder(path) == os.getpid()
