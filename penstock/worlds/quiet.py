"""Training gives way to benchmarks: a lock file in the temporary folder says that a machine should be quiet.

with quiet():            held by a benchmark
wait_for_quiet()         called by training before each step; returns at once when no live process holds the lock
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.errors import OutputError


def lock_path() -> Path:
    """Where the lock file lies."""
    return Path(tempfile.gettempdir()) / "penstock-quiet.pid"


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def holder(path: Path | None = None) -> int | None:
    """The process that wants quiet, or None; a lock left by a dead process counts as none."""
    try:
        pid = int((path or lock_path()).read_text().strip())
    except (OSError, ValueError):
        return None
    return pid if _is_alive(pid) else None


@contextmanager
def quiet(path: Path | None = None) -> Iterator[None]:
    """Ask training on this machine to pause while the block runs.

    A lock of another live process is waited for; a stale one is taken over.

    Raises:
        OutputError: the temporary folder cannot be written.
    """
    where = path or lock_path()
    if holder(where) != os.getpid():
        wait_for_quiet(path=where)
    try:
        where.write_text(str(os.getpid()))
    except OSError as error:
        raise OutputError(f"cannot write the lock {where}: set TMPDIR to a folder that can be written.") from error
    try:
        yield
    finally:
        where.unlink(missing_ok=True)


def wait_for_quiet(
    *,
    path: Path | None = None,
    poll: float = 1.0,
    timeout: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Wait while a live process (not this one) holds the lock; returns the seconds waited, `timeout` at most."""
    waited = 0.0
    while holder(path) not in (None, os.getpid()) and (timeout is None or waited < timeout):
        sleep(poll)
        waited += poll
    return waited
