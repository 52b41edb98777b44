"""For the tests of GPU kernels: streams read by a ring and by kernels, and a recorder that replays without Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from penstock.core import Span
from penstock.kernels.gpu import launch
from penstock.kernels.gpu.chunk import ingest
from penstock.kernels.gpu.decode import decode
from penstock.kernels.gpu.store import Store, scales_for
from penstock.kernels.gpu.tables import PackedTable, SingleTable, rotary_of
from penstock.memory import Cascade, Sinks, Window
from penstock.memory.layout import Layer
from penstock.memory.positions import Rotary
from penstock.memory.ring import RingGroup

FP8 = torch.float8_e4m3fn


def ring_of(
    heads: int = 4, kv_heads: int = 2, width: int = 16, sinks: int = 3, window: int = 12, policy: str = "clamped",
    half: int = 8, interleaved: bool = False, rows: int = 3, dtype: torch.dtype = torch.float32,
) -> RingGroup:  # fmt: skip
    """One layer's ring."""
    frequencies = 100.0 ** -(torch.arange(half).double() / half)
    layer = Layer(0, heads, kv_heads, width, width, Rotary(frequencies, interleaved))
    parts = (Sinks(sinks), Window(window)) if sinks else (Window(window),)
    return RingGroup([layer], Cascade(parts, policy), rows, dtype, torch.device("cpu"))


class Kernels:
    """One layer read and written by kernels, over the tensors of a ring."""

    def __init__(self, group: RingGroup, stored: torch.dtype | None = None) -> None:
        self.group = group
        ring, raw = group.rings[0][0], group.raw_sinks[0] if group.raw_sinks else None
        scales = None
        if stored is FP8:
            ring = torch.zeros(ring.shape, dtype=FP8)
            like = 2 * torch.randn(group.heads, 64, group.width, generator=torch.Generator().manual_seed(0))
            scales = scales_for(like, like)
        rotary, window = rotary_of(group), group.sizes[0]
        assert window is not None
        self.store = Store(ring, raw, group.sinks, window, rotary.width // 2, rotary.interleaved, scales)
        self.own = rotary.angles(torch.arange(group.sinks))

    def attend(
        self, spans: Sequence[Span], starts: Sequence[int], query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> Tensor:  # fmt: skip
        """[N, Hq, D], as Steps would read it."""
        tokens = torch.zeros(sum(span.count for span in spans), dtype=torch.int64)
        if all(span.count == 1 for span in spans) and min(starts) >= self.group.sinks:
            places = 1 << (len(spans) - 1).bit_length()
            table = SingleTable([self.group], places, torch.device("cpu"))
            table.fill(spans, starts, tokens)
            empty = [x.new_zeros(1, x.shape[1], places - len(spans), x.shape[3]) for x in (query, key, value)]
            full = [torch.cat(pair, dim=2) for pair in zip((query, key, value), empty)]
            return decode(self.store, *full, table.singles[0], **options)[0][: len(spans)]
        longest = max(span.count for span in spans)
        packed = PackedTable([self.group], [self.own], len(tokens), len(spans), longest, torch.device("cpu"))
        packed.fill(spans, starts, tokens)
        return ingest(self.store, query, key, value, packed.packed[0], **options)[0]


def both(
    steps: Sequence[dict[int, int]], group: RingGroup, kernels: Kernels, start: int = 0,
    softcap: float | None = None, learned: bool = False,
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """(kernels, ring) outputs of a stream of steps {row: tokens}; with a `start`, rows are full of random entries."""
    generator = torch.Generator().manual_seed(1)
    layer, out = group.layers[0], []
    lengths = [start] * group.rows
    if start:
        for theirs, ours in zip(
            [*group.rings[0], *group.raw_sinks], [*kernels.group.rings[0], *kernels.group.raw_sinks]
        ):
            ours.copy_(theirs.copy_(torch.randn(theirs.shape, generator=generator)))
    heads = (layer.query_heads, layer.kv_heads, layer.kv_heads)
    logit = torch.randn(layer.query_heads, generator=generator) if learned else None
    options: dict[str, Any] = {"scale": layer.key_width**-0.5, "softcap": softcap, "sink_logit": logit}
    for step in steps:
        spans = [Span(row, count) for row, count in step.items()]
        starts = [lengths[span.row] for span in spans]
        total = sum(step.values())
        # As a model gives them: [1, N, H, D] transposed.
        parts = [torch.randn(1, total, h, group.width, generator=generator).transpose(1, 2) for h in heads]
        parts = [part.to(group.dtype) for part in parts]
        expected = group.attend(0, *parts, group.plan(spans, starts), **options)[0]
        out.append((kernels.attend(spans, starts, *parts, wanted=4, **options), expected))
        for span in spans:
            lengths[span.row] += span.count
    return out


class Taped(TorchDispatchMode):
    """Notes every operator and kernel, with the tensors themselves; a look at a number by the host is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[Callable[[], None]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        assert "_local_scalar_dense" not in str(func), "the host looks at a number in a step"
        out = func(*args, **kwargs)
        given = {t.untyped_storage().data_ptr() for t in (*args, *kwargs.values()) if isinstance(t, Tensor)}
        results = [t for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)]

        def again() -> None:
            new = func(*args, **kwargs)
            fresh = [t for t in (new if isinstance(new, (tuple, list)) else (new,)) if isinstance(t, Tensor)]
            for old, now in zip(results, fresh):
                if old.untyped_storage().data_ptr() not in given and old.numel():
                    old.copy_(now)

        self.tape.append(again)
        return out


class Tape:
    """A recorder as CUDA graphs are one: replays repeat operators and kernels on the same tensors, and no Python.

    `protected` tensors are put back after recording, because recording on a GPU runs nothing.
    """

    def __init__(self, protected: Sequence[Tensor]) -> None:
        self.protected = protected

    def record(self, work: Callable[[], Tensor | None]) -> tuple[Callable[[], None], Tensor | None]:
        """As Recorder.record."""
        before = [t.clone() for t in self.protected]
        mode = Taped()

        def note(run: Callable[[], None]) -> None:
            with _disable_current_modes():  # the interpreter's own operators are not part of the step
                run()
            mode.tape.append(run)

        launch.watchers.append(note)
        try:
            with mode:
                out = work()
        finally:
            launch.watchers.remove(note)
        for tensor, old in zip(self.protected, before):
            tensor.copy_(old)

        def replay() -> None:
            for run in mode.tape:
                run()

        return replay, out
