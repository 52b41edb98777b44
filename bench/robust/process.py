"""`penstock serve` as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

LIMIT = 600.0  # seconds: what never ends fails


class Started(NamedTuple):
    """A server that is ready; `errors` holds what it writes to standard error."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]  # its first line
    http: httpx.Client
    errors: Path

    @property
    def address(self) -> str:
        """Where it listens."""
        return str(self.ready["address"])


@contextmanager
def started(*arguments: object) -> Iterator[Started]:
    """A server on a free port of the loopback; it is killed at the end."""
    command = [sys.executable, "-m", "penstock", "serve", *map(str, arguments), "--port", "0", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "errors"
        with (
            errors.open("w") as file,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, env=environment, text=True) as process,
        ):
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                if not line:
                    raise SystemExit(f"the server did not start: {errors.read_text()}")
                ready: dict[str, Any] = json.loads(line)["ready"]
                with httpx.Client(base_url=ready["address"], timeout=LIMIT) as http:
                    yield Started(process, ready, http, errors)
            finally:
                process.kill()
