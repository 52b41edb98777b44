"""How does the benchmark talk to a contestant? Through this handle on its process; the protocol is in `protocol`."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.peers.environments import PEERS, ROOT, python_of
from bench.peers.protocol import Skip
from bench.peers.registry import Entrant


class Failed(Exception):
    """A contestant broke; the message says how, with the end of what it printed."""


class Contestant:
    """A running worker process. Use as a context manager; one request at a time."""

    def __init__(self, entrant: Entrant, threads: int) -> None:
        self.entrant = entrant
        self.threads = threads
        self.description: dict[str, Any] = {}
        self._log = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        self._process = subprocess.Popen(
            [str(python_of(entrant.environment)), "-m", f"bench.peers.{entrant.worker}"],
            cwd=ROOT,
            env=os.environ | limits | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    @property
    def name(self) -> str:
        return self.entrant.name

    def setup(self, shape: str, dtype: str, timeout: float = 1800.0, scratch: Path = PEERS / "models") -> None:
        """Build the model in the worker; returns when the contestant is ready to be measured."""
        reply = self.call(
            "setup",
            timeout=timeout,
            shape=shape,
            dtype=dtype,
            threads=self.threads,
            scratch=str(scratch),
            options=self.entrant.options,
        )
        self.description = reply["describe"]

    def call(self, operation: str, timeout: float = 900.0, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its reply.

        Raises:
            Skip: the contestant does not offer this.
            Failed: it broke or did not answer in time.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"operation": operation, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise Failed(f"{self.name} has ended: {self._tail()}") from error
        reply: dict[str, Any] = json.loads(self._read_line(operation, timeout))
        if "skip" in reply:
            raise Skip(reply["skip"])
        if "error" in reply:
            raise Failed(f"{self.name} at {operation}: {reply['error']}")
        return reply

    def _read_line(self, operation: str, timeout: float) -> bytes:
        assert self._process.stdout is not None
        line, end = bytearray(), time.monotonic() + timeout
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                self._process.kill()
                raise Failed(f"{self.name} did not answer {operation} within {timeout:.0f} s")
            piece = os.read(self._process.stdout.fileno(), 1 << 20)
            if not piece:
                raise Failed(f"{self.name} ended during {operation}: {self._tail()}")
            line += piece
        return bytes(line)

    def _tail(self) -> str:
        self._log.seek(0)
        lines = [line for line in self._log.read().strip().splitlines() if line]
        return lines[-1] if lines else f"exit status {self._process.poll()}"

    def close(self) -> None:
        """End the worker."""
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
