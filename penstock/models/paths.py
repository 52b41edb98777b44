"""How a step is run: eager, or compiled as one graph.

A decode step over a bounded memory has fixed shapes, so `torch.compile` can turn the whole model into one graph.  That
takes tens of seconds, which must never stand between a question and its answer: on the path `auto` a thread compiles
while eager steps go on, and the switch happens between replies.  `compiled` waits, `eager` never compiles.

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
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor

from penstock.core import Phase, Span
from penstock.errors import UnknownName, UsageError
from penstock.memory import Memory
from penstock.models.attach import Attached, Logits, forward

PATHS = ("auto", "eager", "compiled")
_AFTER = 96  # decode steps before `auto` finds compiling worth its while


class Compiled:
    """One compiled decode step, shared by all memories of the same shape on one model."""

    def __init__(self, attached: Attached) -> None:
        self.ready = False
        self.error: str | None = None
        self.seconds = 0.0
        self.speedup = 0.0  # of a compiled step over an eager one, measured when it was built
        self._thread: threading.Thread | None = None
        hf, adapter = attached.hf, attached.adapter

        def decode(tokens: Tensor, step: Any, positions: Tensor | None) -> Tensor | None:
            return forward(hf, adapter, tokens, step, positions, "last")

        self._settings = _settings(attached)
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
        self._thread = threading.Thread(
            target=self.build, args=(attached, memory), daemon=True, name="penstock-compile"
        )
        self._thread.start()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def build(self, attached: Attached, memory: Memory) -> None:
        """Compile now."""
        began = time.perf_counter()
        try:
            scratch = Memory(attached.geometry, memory.cascades, memory.num_rows)
            for row in scratch.rows:
                row.length = 1 + max(c.sinks for c in memory.cascades)
            token = torch.zeros(1, dtype=torch.int64, device=attached.device)
            import torch._inductor.config as inductor

            with inductor.patch(**self._settings), torch.no_grad():
                eager = self._time(attached, scratch, lambda step: attached.run(token, step))
                compiled = self._time(attached, scratch, lambda step: self._call(token, step, None))
            self.speedup = eager / compiled
            self.ready = True
        except Exception as error:  # a missing compiler, an operator the compiler does not know: stay eager, say why
            self.error = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        self.seconds = time.perf_counter() - began

    @staticmethod
    def _time(attached: Attached, scratch: Memory, run: Callable[[Any], Any]) -> float:
        """Median seconds of a step, after the calls that compile it."""
        times = []
        for _ in range(9):
            began = time.perf_counter()
            with scratch.step([Span(0, 1)], Phase.ANSWER) as step:
                run(step)
            times.append(time.perf_counter() - began)
        return sorted(times[2:])[len(times[2:]) // 2]

    def __call__(self, tokens: Tensor, step: Any) -> Tensor:
        with torch.no_grad():
            return self._call(tokens, step, None)


def _settings(attached: Attached) -> dict[str, Any]:
    """How the compiler is set up.

    On a CPU: weights folded in and packed (if there is room for a second copy), projections that share an input joined,
    the compiler's own matrix products, which read the weights of a single token at nearly the speed of memory.
    """
    if attached.device.type != "cpu":
        return {}
    weights = sum(p.numel() * p.element_size() for p in attached.hf.parameters())
    if psutil.virtual_memory().available < 3 * weights:
        return {}
    own_products = {"max_autotune": True, "max_autotune_gemm_backends": "CPP"}
    return {"freezing": True, "cpp.enable_concat_linear": True} | own_products


class Runner:
    """Runs steps of one memory on one model, on the chosen path."""

    def __init__(self, attached: Attached, memory: Memory, path: str = "auto") -> None:
        if path not in PATHS:
            raise UnknownName("path", path, PATHS)
        self.attached, self.memory, self.path = attached, memory, path
        self._decoded = 0
        self._active = False  # compiled steps are in use
        shape = (memory.num_rows, tuple(memory.cascades))
        shared: dict[Any, Compiled] = attached.hf.__dict__.setdefault("_penstock_compiled", {})
        self._shape, self._shared = shape, shared
        self.why_not = self._obstacle()
        if path == "compiled" and self.why_not:
            raise UsageError(f"the compiled path is not possible here: {self.why_not}; use --path eager.")

    def _obstacle(self) -> str | None:
        """Why compiling is not possible, or None."""
        memory, attached = self.memory, self.attached
        if memory.naive:
            return "the naive specification is not compiled"
        if not memory.is_bounded:
            return "this memory grows, so its steps have no fixed shape"
        if any(len(c.windows) != 1 for c in memory.cascades):
            return "this cascade has several windows"
        if attached.adapter is not None:
            return "this family is attached through an adapter"
        if attached.geometry.is_absolute:
            return "this model has learned absolute positions"
        return None

    @property
    def compiled(self) -> Compiled | None:
        return self._shared.get(self._shape)

    @property
    def now(self) -> str:
        """The path of the next decode step."""
        return "compiled" if self._active else "eager"

    @property
    def status(self) -> str:
        """One phrase for people: what runs now, and what is being prepared."""
        compiled = self.compiled
        if self._active:
            return "compiled"
        if compiled is not None and compiled.running:
            return "eager (compiling)"
        if compiled is not None and compiled.ready:
            return (
                "eager (compiled from the next reply)" if compiled.speedup > 1.05 else "eager (compiling gains nothing)"
            )
        if compiled is not None and compiled.error:
            return f"eager (compiling failed: {compiled.error})"
        return f"eager ({self.why_not})" if self.why_not and self.path == "auto" else "eager"

    def between_replies(self) -> None:
        """The moment at which `auto` may switch paths."""
        if self.path == "auto" and not self._active:
            compiled = self.compiled
            self._active = compiled is not None and compiled.ready and compiled.speedup > 1.05

    def prepare(self) -> None:
        """Compile now and use it (what `compiled` does at its first decode step)."""
        if self.why_not:
            return
        compiled = self._shared.setdefault(self._shape, Compiled(self.attached))
        compiled.wait()
        if not compiled.ready and not compiled.error:
            compiled.build(self.attached, self.memory)
        if compiled.error and self.path == "compiled":
            raise UsageError(f"the compiled path is not possible here: {compiled.error}; use --path eager.")
        self._active = compiled.ready and (self.path == "compiled" or compiled.speedup > 1.05)

    def close(self) -> None:
        """Wait for a compilation under way, so that the process can end cleanly."""
        with contextlib.suppress(Exception):
            if self.compiled is not None:
                self.compiled.wait()

    @torch.no_grad()
    def step(
        self, spans: Sequence[Span], tokens: Sequence[int] | Tensor, logits: Logits = "last",
        phase: Phase = Phase.INGEST,
    ) -> Tensor | None:  # fmt: skip
        """Run packed tokens [N] through the model and the memory; logits as Attached.run."""
        attached = self.attached
        ids = torch.as_tensor(tokens, dtype=torch.int64, device=attached.device)
        single = phase is Phase.ANSWER and len(ids) == len(spans)
        if single and self._use_compiled():
            assert self.compiled is not None
            with self.memory.step(spans, phase) as step:
                if all(plan.decode is not None for plan in step.plans):
                    return self.compiled(ids, step)
                return attached.run(ids, step, None, logits)
        positions = self._positions(spans) if attached.geometry.is_absolute else None
        with self.memory.step(spans, phase) as step:
            return attached.run(ids, step, positions, logits)

    def _positions(self, spans: Sequence[Span]) -> Tensor:
        parts = [torch.arange(self.memory.length(s.row), self.memory.length(s.row) + s.count) for s in spans]
        return torch.cat(parts).to(self.attached.device)

    def _use_compiled(self) -> bool:
        if self.why_not or self.path == "eager" or self.memory.num_rows != 1:
            return False
        if self.path == "compiled" and not self._active:
            self.prepare()
        elif self.path == "auto" and not self._active:
            self._decoded += 1
            if self._decoded == _AFTER:
                compiled = self._shared.setdefault(self._shape, Compiled(self.attached))
                compiled.start(self.attached, self.memory)
        return self._active
