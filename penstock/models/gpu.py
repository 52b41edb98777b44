"""Whether a model and a memory can be stepped by the GPU kernels, and what it takes (penstock/kernels/gpu).

Rules, in order: the model is on a CUDA device on which a trial kernel runs; its attention is reached through the
interface; the memory is sinks and one window, bounded, in every layer, with plain rotary positions.  The model's own
code runs as ever, with the kernels where it attends; each kind of step is then replayed as one graph.  `gpu` also
compiles the model around the kernels, once, and waits for that; `auto` does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penstock.core import Span
from penstock.kernels.gpu.available import obstacle
from penstock.memory import Memory, retrieval
from penstock.models.attach import COMPILING, Attached, Logits, forward

if TYPE_CHECKING:
    from penstock.kernels.gpu.graphs import Recorder
    from penstock.kernels.gpu.steps import Steps

GPU_PATH = "gpu"


def choose(attached: Attached, memory: Memory, path: str = GPU_PATH) -> tuple[GpuSteps | None, str]:
    """The kernels' steps for a memory, or None and why.  Who asks for the path waits for the compiler."""
    device = attached.geometry.device
    reason = obstacle(device)
    if reason is not None:
        return None, reason
    from penstock.kernels.gpu.graphs import CudaGraphs
    from penstock.kernels.gpu.pages import page_scores
    from penstock.kernels.gpu.steps import memory_obstacle

    retrieval.SCORERS["cuda"] = page_scores  # archives are not stepped by kernels, but their pages are chosen by one
    if attached.adapter is not None:
        return None, "this family is attached through an adapter"
    reason = memory_obstacle(memory)
    if reason is not None:
        return None, reason
    programs = 2 * torch.cuda.get_device_properties(device).multi_processor_count
    return GpuSteps(attached, memory, CudaGraphs(device), programs, fuse=path == GPU_PATH), ""


class Fused:
    """A model's forward pass for single tokens, compiled around the kernels; as it is where the compiler fails.

    Between two kernels a model does many small things (norms, activations), which the compiler makes a few.  One per
    model, shared by its memories.
    """

    def __init__(self, attached: Attached, backend: str | Callable[..., Any] = "inductor") -> None:
        self.attached, self.backend = attached, backend
        self.why_not = ""  # of the last kind of step that could not be compiled
        self._made: dict[tuple[int, Logits], Callable[..., Tensor | None] | None] = {}

    def _compile(self, kind: tuple[int, Logits]) -> Callable[..., Tensor | None]:
        hf, adapter, logits = self.attached.hf, self.attached.adapter, kind[1]

        def run(tokens: Tensor, step: Any) -> Tensor | None:
            return forward(hf, adapter, tokens, step, None, logits)

        # Compiled code is filed, and limited in number, by code object (models/compiled.py does the same).
        run.__code__ = run.__code__.replace(co_name=f"single_{id(self)}_{kind[0]}_{logits}")
        made: Callable[..., Tensor | None] = torch.compile(run, fullgraph=True, dynamic=False, backend=self.backend)
        return made

    def __call__(self, tokens: Tensor, step: Any, logits: Logits) -> Tensor | None:
        """As Attached.run.  A step of single tokens can be run again, so one that the compiler broke does no harm."""
        kind = len(tokens), logits
        if kind not in self._made:
            self._made[kind] = self._compile(kind)
        made = self._made[kind]
        if made is not None:
            try:
                with COMPILING:
                    return made(tokens, step)
            except Exception as error:  # a missing compiler, an operator that it does not know
                inner = getattr(error, "inner_exception", error)
                self.why_not = (str(inner).strip() or type(inner).__name__).splitlines()[0]
                self._made[kind] = None
        return self.attached.run(tokens, step, None, logits)


class GpuSteps:
    """The kernels' steps of one memory, behind the same functions as models/native.py: NativeSteps.

    Without a recorder every step runs as it is; on the CPU that needs Triton's interpreter.
    """

    planned = False  # positions, slots and angles go to the device in tables of our own

    def __init__(
        self, attached: Attached, memory: Memory, recorder: Recorder | None = None, programs: int = 264,
        fuse: bool = False, backend: str | Callable[..., Any] = "inductor",
    ) -> None:  # fmt: skip
        from penstock.kernels.gpu.steps import Steps

        self.fused: Fused | None = None
        if fuse:
            shared = attached.hf.__dict__.setdefault("_penstock_fused", {})
            self.fused = shared.setdefault(backend, Fused(attached, backend))

        def plain(tokens: Tensor, step: Any, logits: Logits | Tensor) -> Tensor | None:
            return attached.run(tokens, step, None, logits)

        self.steps: Steps = Steps(plain, memory, recorder, programs, self.fused)
        self._hf = attached.hf
        self._weights = self._addresses()

    @property
    def note(self) -> str:
        """How steps run now, as a phrase."""
        if self.fused is None:
            return self.steps.note
        compiled = f"not compiled because {self.fused.why_not}" if self.fused.why_not else "compiled"
        return f"{self.steps.note}, single tokens {compiled}"

    def _addresses(self) -> list[Tensor]:
        """The weights, held where they are: a recording reads them by address."""
        return [p.data for p in self._hf.parameters()]

    def refresh(self) -> None:
        """Forget recordings if the model's weights were replaced (those written to in place are read as they are)."""
        now = self._addresses()
        if [p.data_ptr() for p in now] != [p.data_ptr() for p in self._weights]:
            self._weights = now
            self.steps.forget()

    def takes(self, spans: Sequence[Span]) -> bool:
        """Whether a step runs through the kernels: all do."""
        return True

    def run(self, step: Any, spans: Sequence[Span], ids: Tensor, logits: Logits | Tensor) -> Tensor | None:
        """Inside a step of the memory that was not planned; logits as Attached.run."""
        return self.steps.run(spans, ids, logits)
