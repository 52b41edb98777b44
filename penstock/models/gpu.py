"""Whether a model and a memory can be stepped by the GPU kernels, and what it takes (penstock/kernels/gpu).

Rules, in order: the model is on a CUDA device on which a trial kernel runs; its attention is reached through the
interface; the memory is sinks and one window, bounded, in every layer, with plain rotary positions.  The model's own
code runs as ever, with the kernels where it attends; each kind of step is then replayed as one graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penstock.core import Span
from penstock.kernels.gpu import available
from penstock.memory import Memory, retrieval
from penstock.models.attach import Attached, Logits

if TYPE_CHECKING:
    from penstock.kernels.gpu.graphs import Recorder
    from penstock.kernels.gpu.steps import Steps

GPU_PATH = "gpu"


def choose(attached: Attached, memory: Memory) -> tuple[GpuSteps | None, str]:
    """The kernels' steps for a memory, or None and why."""
    device = attached.geometry.device
    reason = available.obstacle(device)
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
    return GpuSteps(attached, memory, CudaGraphs(device), programs), ""


class GpuSteps:
    """The kernels' steps of one memory, behind the same functions as models/native.py: NativeSteps.

    Without a recorder every step runs as it is; on the CPU that needs Triton's interpreter.
    """

    planned = False  # positions, slots and angles go to the device in tables of our own

    def __init__(
        self, attached: Attached, memory: Memory, recorder: Recorder | None = None, programs: int = 264
    ) -> None:
        from penstock.kernels.gpu.steps import Steps

        def forward(tokens: Tensor, step: Any, logits: Logits | Tensor) -> Tensor | None:
            return attached.run(tokens, step, None, logits)

        self.steps: Steps = Steps(forward, memory, recorder, programs)

    @property
    def note(self) -> str:
        """How steps run now, as a phrase."""
        return self.steps.note

    def takes(self, spans: Sequence[Span]) -> bool:
        """Whether a step runs through the kernels: all do."""
        return True

    def run(self, step: Any, spans: Sequence[Span], ids: Tensor, logits: Logits | Tensor) -> Tensor | None:
        """Inside a step of the memory that was not planned; logits as Attached.run."""
        return self.steps.run(spans, ids, logits)
