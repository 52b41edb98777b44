"""How a step is run: eager, compiled as one graph, or natively.

A step over a full bounded memory has fixed shapes, so it can be one graph (models/compiled.py).  Compiling takes tens
of seconds, which must never stand between a question and its answer: on the path `auto` a thread compiles while eager
steps go on, and the switch happens between replies.  `compiled` waits, `eager` never compiles.

Where the model has a native step (models/native.py), `auto` uses that from the first token on and compiles nothing;
`native` insists on it, `native-int8` rounds the weights to 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from penstock.core import Phase, Span
from penstock.errors import PenstockError, UnknownName, UsageError
from penstock.memory import Memory
from penstock.models import compiled
from penstock.models.attach import COMPILING, Attached, Logits
from penstock.models.compiled import Compiled, full_length
from penstock.models.embedded import Inputs, place
from penstock.models.gpu import GPU_PATH, GpuSteps
from penstock.models.gpu import choose as choose_gpu
from penstock.models.native import NATIVE_PATHS, NativeSteps, choose

PATHS = ("auto", "eager", "compiled", *NATIVE_PATHS, GPU_PATH)
_AFTER = 96  # steps of one kind before `auto` finds compiling worth its while
_WORTH = 1.05  # speed-up below which a compiled step is not used


class Runner:
    """Runs steps of one memory on one model, on the chosen path.  `chunk` is the usual size of an ingest step."""

    def __init__(self, attached: Attached, memory: Memory, path: str = "auto", chunk: int = 0) -> None:
        if path not in PATHS:
            raise UnknownName("path", path, PATHS)
        self.attached, self.memory, self.path, self.chunk = attached, memory, path, chunk
        self._steps: dict[tuple[int, Logits], int] = {}  # eager steps of each kind
        self._active: set[tuple[int, Logits]] = set()  # kinds whose compiled step is in use
        self._shape = (memory.num_rows, tuple(memory.cascades))
        self._shared: dict[Any, Compiled] = attached.hf.__dict__.setdefault("_penstock_compiled", {})
        self.why_not = self._obstacle()
        if path == "compiled" and self.why_not:
            raise UsageError(f"the compiled path is not possible here: {self.why_not}; use --path eager.")
        self._native: NativeSteps | GpuSteps | None = None
        self.native_note = "not asked for"  # how it runs, or why not
        on_gpu = attached.device.type == "cuda"
        if path in NATIVE_PATHS or (path == "auto" and not on_gpu):
            native, self.native_note = choose(attached, memory, path)
            if native is None and path != "auto":
                raise UsageError(f"the native path is not possible here: {self.native_note}; use --path auto.")
            self._native = None if native is None else NativeSteps(native, attached)
        if path == GPU_PATH or (path == "auto" and on_gpu):
            self._native, self.native_note = choose_gpu(attached, memory, path)
            if self._native is None and path == GPU_PATH:
                raise UsageError(f"the gpu path is not possible here: {self.native_note}; use --path auto.")

    def _obstacle(self) -> str | None:
        """Why compiling is not possible, or None."""
        memory, attached = self.memory, self.attached
        if memory.naive:
            return "the naive specification is not compiled"
        if not memory.is_bounded:
            return "this memory grows, so its steps have no fixed shape"
        if not all(c.is_simple for c in memory.cascades):
            return "this memory changes its shape where a unit ends"
        if any(len(c.windows) != 1 for c in memory.cascades):
            return "this cascade has several windows"
        if attached.adapter is not None:
            return "this family is attached through an adapter"
        if attached.geometry.is_absolute:
            return "this model has learned absolute positions"
        if memory.num_rows != 1:
            return "this memory has several rows"
        return None

    def _get(self, kind: tuple[int, Logits]) -> Compiled:
        return self._shared.setdefault((self._shape, *kind), Compiled(self.attached, *kind))

    @property
    def now(self) -> str:
        """The path of the next steps."""
        if self._native is not None:
            return GPU_PATH if isinstance(self._native, GpuSteps) else "native"
        return "compiled" if self._active else "eager"

    @property
    def status(self) -> str:
        """One phrase for people: what runs now, and what is being prepared."""
        if self._native is not None:
            return f"{self.now} ({self._note})"
        made = [c for (shape, *_), c in self._shared.items() if shape == self._shape]
        if any(c.running for c in made):
            return f"{self.now} (compiling)"
        if self._active:
            return "compiled"
        if self.why_not and self.path != "eager":
            return f"eager ({self.why_not})"
        failed = next((c.error for c in made if c.error), None)
        if failed:
            return f"eager (compiling failed: {failed})"
        if any(c.ready and c.speedup > _WORTH for c in made):
            return "eager (compiled from the next reply)"
        return "eager (compiling gains nothing)" if made and self.path == "auto" else "eager"

    @property
    def explanation(self) -> str:
        """One sentence: which path runs, and why it and no other one."""
        if self._native is not None:
            why = "asked for" if self.path != "auto" else "the model and the memory fit it"
            how = "on the GPU" if isinstance(self._native, GpuSteps) else "natively"
            return f"steps run {how} ({self._note}), because {why}."
        if self.path != "auto":
            return f"steps {'of fixed shape run compiled' if self.path == 'compiled' else 'run eagerly'}, as asked for."
        then = f"not compiled, because {self.why_not}" if self.why_not else "compiled where that is faster"
        other = "through GPU kernels" if self.attached.device.type == "cuda" else "natively"
        return f"steps run on PyTorch, {then}; not {other}, because {self.native_note}."

    @property
    def _note(self) -> str:
        return self._native.note if isinstance(self._native, GpuSteps) else self.native_note

    def between_replies(self) -> None:
        """The moment at which `auto` may switch paths."""
        if isinstance(self._native, GpuSteps):
            self._native.refresh()
        if self.path == "auto" and self._native is None:
            for (shape, *kind), made in self._shared.items():
                if shape == self._shape and made.ready and made.speedup > _WORTH:
                    self._active.add((kind[0], kind[1]))

    def prepare(self, count: int = 1, logits: Logits = "last") -> None:
        """Compile the step of `count` tokens now and use it (what `compiled` does when it first needs one)."""
        if self.why_not or self._native is not None:
            return
        made = self._get((count, logits))
        made.wait()
        if not made.ready and not made.error:
            made.build(self.attached, self.memory)
        if made.error and self.path == "compiled":
            raise UsageError(f"the compiled path is not possible here: {made.error}; use --path eager.")
        if made.ready and (self.path == "compiled" or made.speedup > _WORTH):
            self._active.add((count, logits))

    def use_as(self, other: Runner) -> None:
        """Run what the other runs (a fork continues on the path of its original)."""
        self._active = set(other._active)

    def close(self) -> None:
        """Wait for compilations under way, so that the process can end cleanly."""
        for made in list(self._shared.values()):
            made.wait()

    @torch.no_grad()
    def step(
        self, spans: Sequence[Span], tokens: Sequence[int] | Tensor, logits: Logits | Tensor = "last",
        phase: Phase = Phase.INGEST, kinds: Tensor | None = None, inputs: Inputs | None = None,
    ) -> Tensor | None:  # fmt: skip
        """Run packed tokens [N] of kinds [N] through the model and the memory; logits and inputs as Attached.run."""
        attached = self.attached
        ids = torch.as_tensor(tokens, dtype=torch.int64, device=attached.device)
        if self._native is not None and inputs is None and self._native.takes(spans):
            with self.memory.step(spans, phase, kinds, planned=self._native.planned) as step:
                return self._native.run(step, spans, ids, logits)
        kind = None if isinstance(logits, Tensor) or inputs is not None else self._kind(spans, logits)
        if kind is not None and self._use(kind, phase):
            with self.memory.step(spans, phase) as step:
                return self._get(kind)(ids, step)
        if compiled.under_way and not self.memory.naive:
            return self._beside_a_compiler(spans, ids, logits, phase, kinds, inputs)
        return self._eager(spans, ids, logits, phase, kinds, inputs)

    def _eager(
        self, spans: Sequence[Span], ids: Tensor, logits: Logits | Tensor, phase: Phase, kinds: Tensor | None,
        inputs: Inputs | None,
    ) -> Tensor | None:  # fmt: skip
        positions = self._positions(spans) if self.attached.geometry.is_absolute else None
        with self.memory.step(spans, phase, kinds) as step:
            if inputs is not None:
                place(step, inputs.at)
            return self.attached.run(ids, step, positions, logits, inputs)

    def _beside_a_compiler(
        self, spans: Sequence[Span], ids: Tensor, logits: Logits | Tensor, phase: Phase, kinds: Tensor | None,
        inputs: Inputs | None,
    ) -> Tensor | None:  # fmt: skip
        """An eager step while another thread compiles: if the compiler's patches break it, it is taken back and run
        again when the compiler is done (rare; seen once in some thousand steps)."""
        marks = [(self.memory.mark(span.row, span.count), span.row) for span in spans]
        try:
            try:
                return self._eager(spans, ids, logits, phase, kinds, inputs)
            except PenstockError:
                raise
            except Exception:
                for mark, row in marks:
                    self.memory.rollback(mark, row)
                with COMPILING:
                    return self._eager(spans, ids, logits, phase, kinds, inputs)
        finally:
            for mark, row in marks:
                self.memory.commit(mark, row)

    def _positions(self, spans: Sequence[Span]) -> Tensor:
        parts = [torch.arange(self.memory.length(s.row), self.memory.length(s.row) + s.count) for s in spans]
        return torch.cat(parts).to(self.attached.device)

    def _kind(self, spans: Sequence[Span], logits: Logits) -> tuple[int, Logits] | None:
        """The kind of compiled step that could run this, if one could."""
        if self.why_not or self._native is not None or self.path not in ("auto", "compiled"):
            return None
        count, length = spans[0].count, self.memory.length(spans[0].row)
        if count == 1 and length > max(c.sinks for c in self.memory.cascades):
            return 1, "last"
        fits = count == self.chunk and length >= full_length(self.memory)
        return (count, logits) if fits and self.attached.geometry.dtype != torch.float32 else None  # measured: no gain

    def _use(self, kind: tuple[int, Logits], phase: Phase) -> bool:
        if kind in self._active:
            return True
        if self.path == "compiled":
            self.prepare(*kind)
            return True
        seen = self._steps[kind] = self._steps.get(kind, 0) + 1
        if seen == _AFTER:
            self._get(kind).start(self.attached, self.memory)
        elif seen > _AFTER and phase is Phase.INGEST and kind[0] > 1:
            self.between_replies()  # chunks of the stream are not part of a reply
        return kind in self._active
