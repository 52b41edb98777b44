"""Whether a model and a memory have a native step, and what it takes to use one (penstock/kernels).

Rules, in order: the library is there; the model is a stack of Llama blocks; its logits over a few tokens are those of
the PyTorch path.  On `auto` the native step is then used, because it reads every weight once at the speed of memory;
only where the processor has bfloat16 products of its own do long bfloat16 steps stay with PyTorch, which uses them.
With sinks and one window per layer the whole step is one call; with any other memory one between two attentions.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from penstock.core import Span
from penstock.kernels import library
from penstock.kernels.split import Split
from penstock.kernels.step import Native, is_whole, weights_of
from penstock.kernels.weights import Unfit, Weights, obstacle
from penstock.memory import Cascade, Memory
from penstock.memory.attend import emulates
from penstock.memory.segments import Everything
from penstock.models.attach import COMPILING, Attached, Logits

NATIVE_PATHS = ("native", "native-int8")
describe = library.describe
_LONG = 32  # tokens of one row from which a bfloat16 step is long
_CHECKED = (7, 1, 1)  # the steps over which logits are compared
# The largest relative difference of logits (root of the mean square) that rounding explains; a wrong block is off by 1.
_CLOSE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
_CLOSE_INT8 = 0.25


def choose(attached: Attached, memory: Memory, path: str) -> tuple[Native | Split | None, str]:
    """The native step for a memory, or None, and why."""
    int8 = path == "native-int8"
    reason = "the naive specification has no native step" if memory.naive else None
    if reason is None and attached.adapter is not None:
        reason = "this family is attached through an adapter"
    reason = reason or obstacle(attached.hf, attached.geometry)
    if reason is None and path == "auto" and library.describe()["uses"] == "portable":
        reason = "the processor has no vectors that the native step was built for"
    if reason is not None:
        if reason == library.ABSENT and path == "auto":
            _say_once()
        return None, reason
    try:
        weights = weights_of(attached.hf, attached.geometry, int8)
        reason = verify(attached, weights, int8)
    except Unfit as unfit:
        reason = str(unfit)
    if reason is not None:
        return None, reason
    kind = "int8" if int8 else str(attached.geometry.dtype).removeprefix("torch.")
    about = f"{library.describe()['uses']}, {kind} weights"
    if is_whole(memory):
        return Native(weights, memory, attached.vocabulary), about
    return Split(weights, memory, attached.vocabulary), f"{about}, the memory moves by itself"


@cache
def _say_once() -> None:
    warnings.warn(f"{library.ABSENT}; until then steps run on PyTorch.", stacklevel=2)


@torch.no_grad()
def verify(attached: Attached, weights: Weights, int8: bool) -> str | None:
    """Compare logits with the PyTorch path over a few tokens, once per set of weights; why they differ, or None."""
    if weights.verdict is None:
        everything = [Cascade((Everything(),)) for _ in attached.geometry.layers]
        ours, theirs = (Memory(attached.geometry, everything) for _ in range(2))
        native = Native(weights, ours, attached.vocabulary)
        limit = _CLOSE_INT8 if int8 else _CLOSE[attached.geometry.dtype]
        worst = 0.0
        for i, count in enumerate(_CHECKED):
            tokens = (torch.arange(count) * 7919 + 31 * i) % attached.vocabulary
            with ours.step([Span(0, count)], planned=False):
                got = native.run([Span(0, count)], tokens, torch.arange(count))
            with COMPILING, theirs.step([Span(0, count)]) as step:
                expected = attached.run(tokens, step, None, "all")
            assert got is not None
            assert expected is not None
            difference = (got.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-9)
            worst = max(worst, float(difference))
        fine = worst <= limit
        weights.verdict = "" if fine else f"its logits differ from the model's by {worst:.2g}, so it is another block"
    return weights.verdict or None


class NativeSteps:
    """The native steps of one memory, behind the arguments of `Attached.run`."""

    def __init__(self, native: Native | Split, attached: Attached) -> None:
        self.native = native
        self.planned = isinstance(native, Split)  # whether it needs the memory's own plan of a step
        # PyTorch multiplies long bfloat16 steps in hardware where there is some.
        self._short = (
            not emulates(attached.geometry.dtype, attached.device) and attached.geometry.dtype == torch.bfloat16
        )

    def takes(self, spans: Sequence[Span]) -> bool:
        """Whether a step runs natively: rows that decode together always do, however many."""
        return not (self._short and max((span.count for span in spans), default=0) >= _LONG)

    def run(self, step: Any, spans: Sequence[Span], ids: Tensor, logits: Logits | Tensor) -> Tensor | None:
        """Inside a step of the memory, planned if `planned`; logits as Attached.run."""
        if isinstance(logits, Tensor):
            places: Tensor | None = logits
        elif logits == "none":
            places = None
        else:
            places = torch.arange(0 if logits == "all" else len(ids) - 1, len(ids))
        if isinstance(self.native, Split):
            return self.native.run(step, ids, places)
        return self.native.run(spans, ids, places)
