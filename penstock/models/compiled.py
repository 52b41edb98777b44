"""A step compiled as one graph: one for decoding a token, one for reading a chunk into a full memory.

Weights are folded into the graph (freezing) and packed for the processor where memory allows; such graphs cannot be
cached on disk by the framework, so they are compiled again in each process.  A compiled step is only ever called with
steps of the shape it was made for, so the guards, a tenth of a small model's step, are left out.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch
from torch import Tensor

from penstock.core import Span
from penstock.memory import Memory
from penstock.models.attach import COMPILING, Attached, Logits, forward

under_way = 0  # compilations in this process


@contextlib.contextmanager
def _counted() -> Iterator[None]:
    global under_way
    under_way += 1
    try:
        yield
    finally:
        under_way -= 1


class Compiled:
    """One compiled step, shared by all memories of the same shape on one model.

    `count` tokens of one row; 1 is a decode step, more is a chunk read into a full memory.
    """

    def __init__(self, attached: Attached, count: int, logits: Logits) -> None:
        self.count, self.logits = count, logits
        self.ready = False
        self.error: str | None = None
        self.seconds = 0.0
        self.speedup = 0.0  # of a compiled step over an eager one, measured when it was built
        self._thread: threading.Thread | None = None
        hf, adapter = attached.hf, attached.adapter

        def decode(tokens: Tensor, step: Any, positions: Tensor | None) -> Tensor | None:
            return forward(hf, adapter, tokens, step, positions, logits)

        # Compiled graphs are filed under the code object, and without guards the first one would serve every model and
        # kind of step: each gets a code object of its own.
        decode.__code__ = decode.__code__.replace(co_name=f"decode_{id(self)}_{count}")
        self._settings = _settings(attached, count)
        guards = (
            {"guard_filter_fn": skip} if (skip := getattr(torch.compiler, "skip_all_guards_unsafe", None)) else None
        )
        self._call: Callable[..., Any] = torch.compile(decode, fullgraph=True, dynamic=False, options=guards)

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, attached: Attached, memory: Memory) -> None:
        """Compile in the background, on a scratch memory of the same shape."""
        if self.ready or self.running or self.error:
            return
        self._thread = threading.Thread(target=self._behind, args=(attached, memory), daemon=True)
        self._thread.start()

    def _behind(self, attached: Attached, memory: Memory) -> None:
        """Build while others work: yield the interpreter often, and the processor where the system allows it."""
        interval = sys.getswitchinterval()
        sys.setswitchinterval(2e-4)
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        try:
            self.build(attached, memory)
        finally:
            sys.setswitchinterval(interval)

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def build(self, attached: Attached, memory: Memory) -> None:
        """Compile now; one at a time in a process."""
        began = time.perf_counter()
        with COMPILING, _counted():
            self._build(attached, memory)
        self.seconds = time.perf_counter() - began

    def _build(self, attached: Attached, memory: Memory) -> None:
        try:
            scratch = Memory(attached.geometry, memory.cascades, memory.num_rows)
            for row in scratch.rows:
                row.length = full_length(memory)
            token = torch.zeros(self.count, dtype=torch.int64, device=attached.device)
            import torch._inductor.config as inductor

            with inductor.patch(**self._settings), torch.no_grad():
                eager = self._time(attached, scratch, lambda step: attached.run(token, step, None, self.logits))
                compiled = self._time(attached, scratch, lambda step: self._call(token, step, None))
            self.speedup = eager / compiled
            self.ready = True
        except Exception as error:  # a missing compiler, an operator the compiler does not know: stay eager, say why
            self.error = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

    def _time(self, attached: Attached, scratch: Memory, run: Callable[[Any], Any]) -> float:
        """Median seconds of a step, after the calls that compile it."""
        times = []
        for _ in range(9):
            began = time.perf_counter()
            with scratch.step([Span(0, self.count)]) as step:
                run(step)
            times.append(time.perf_counter() - began)
        return sorted(times[2:])[len(times[2:]) // 2]

    def __call__(self, tokens: Tensor, step: Any) -> Tensor:
        with torch.no_grad():
            return self._call(tokens, step, None)


def _settings(attached: Attached, count: int) -> dict[str, Any]:
    """How the compiler is set up.

    On a CPU: weights folded in and packed (if there is room for a second copy), projections that share an input joined.
    For a single token the compiler's own matrix products, which read the weights at nearly the speed of memory; for
    chunks the library's (measured: three times faster there).
    """
    if attached.device.type != "cpu":
        return {}
    weights = sum(p.numel() * p.element_size() for p in attached.hf.parameters())
    if psutil.virtual_memory().available < 3 * weights:
        return {}
    packed = {"freezing": True, "cpp.enable_concat_linear": True}
    return packed if count > 1 else packed | {"max_autotune": True, "max_autotune_gemm_backends": "CPP"}


def full_length(memory: Memory) -> int:
    """Tokens after which every bounded segment of a row is full, and steps have their final shape."""
    return max(c.entries or 0 for c in memory.cascades)
