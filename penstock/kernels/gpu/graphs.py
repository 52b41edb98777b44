"""A step that is recorded once and replayed: as it is, then recorded, then replayed, or refused and run as it is.

A recording holds addresses and launches and nothing of Python: whatever changes from step to step stands in tensors
that the recorded work reads (tables.py).  Recording a step does not run it, so a step is never run twice.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

Work = Callable[[], Tensor | None]


class Recorder(Protocol):
    """What records work on a device."""

    def record(self, work: Work) -> tuple[Callable[[], None], Tensor | None]:
        """(replay, the tensor that each replay writes its result to); the work has not run yet."""
        ...


class CudaGraphs:
    """CUDA graphs of one device; they share one pool, because no two run at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Work) -> tuple[Callable[[], None], Tensor | None]:
        """As Recorder.record.  Other threads may use the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            out = work()
        return graph.replay, out


class State(Enum):
    """Where a step stands on its way to being replayed."""

    COLD = "not run yet"
    WARM = "run once as it is: kernels are compiled, libraries have their buffers"
    RECORDED = "replayed"
    REFUSED = "run as it is: it cannot be recorded"


class Replay:
    """One kind of step; call it after its tables were filled."""

    def __init__(self, work: Work, recorder: Recorder | None) -> None:
        self.work, self.recorder = work, recorder
        self.state = State.COLD if recorder is not None else State.REFUSED
        self.why_not = "" if recorder is not None else "the device has no graphs"
        self._replay: Callable[[], None] | None = None
        self._out: Tensor | None = None

    def __call__(self) -> Tensor | None:
        """Run the step; the result is the caller's own."""
        if self.state is State.COLD:
            out = self.work()  # raises if the step itself is wrong; then it is still cold
            self.state = State.WARM
            return out
        if self.state is State.WARM:
            self._record()
        if self._replay is None:
            return self.work()
        self._replay()
        return None if self._out is None else self._out.clone()

    def _record(self) -> None:
        assert self.recorder is not None
        try:
            self._replay, self._out = self.recorder.record(self.work)
            self.state = State.RECORDED
        except Exception as error:  # an operation that graphs do not allow: the step runs as it is
            first = str(error).strip().splitlines()
            self.state, self.why_not = State.REFUSED, first[0] if first else type(error).__name__
