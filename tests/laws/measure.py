"""Instruments: bytes of real storage, operations of a step, bytes alive within a step."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from penstock.memory import Alibi, Geometry, Layer, Memory, Place, Rotary
from penstock.memory.flow import Branch
from penstock.memory.tiers.records import Records

_OF_THE_MODEL = (Geometry, Layer, Rotary, Alibi, Place, Branch)  # facts about the model and the composition


def storage(memory: Memory) -> int:
    """Bytes of all tensors that can be reached from a memory, each storage once, and of what tiers note of blocks.

    A note counts with the eight bytes of its block in the table of a store.
    """
    seen: set[int] = set()
    found: dict[int, int] = {}

    def walk(value: Any) -> None:
        if id(value) in seen or isinstance(value, (*_OF_THE_MODEL, type, torch.dtype, torch.device, str, bytes, int)):
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            data = value.untyped_storage()
            found[data.data_ptr()] = data.nbytes()
        elif isinstance(value, Records):
            columns = [column for column in vars(value).values() if isinstance(column, np.ndarray)]
            found[-id(value)] = sum(column.nbytes for column in columns) + 8 * len(columns[0])
        elif isinstance(value, dict):
            for part in value.values():
                walk(part)
        elif isinstance(value, (list, tuple, set, frozenset)):
            for part in value:
                walk(part)
        else:
            for name in getattr(value, "__slots__", ()):
                walk(getattr(value, name, None))
            for part in getattr(value, "__dict__", {}).values():
                walk(part)

    walk(memory)
    return sum(found.values())


def tensors(value: Any) -> Iterator[Tensor]:
    """Those among the arguments or results of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


class Operations(TorchDispatchMode):
    """Counts operations by name and by the shapes of what they read and give: equal counts are equal cost."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        numels = tuple(t.numel() for t in tensors((args, kwargs, out)))
        self.counts[(func, *numels)] += 1
        return out


class Live(TorchDispatchMode):
    """Bytes of storages made inside that are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, tuple[int, int]] = {}  # data pointer -> (bytes, tensors that hold it)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in tensors(out):
            data = tensor.untyped_storage()
            pointer = data.data_ptr()
            if pointer in given and pointer not in self._alive:
                continue  # a view of something that was there before
            if data.nbytes():
                self._hold(tensor, pointer, data.nbytes())
        return out

    def _hold(self, tensor: Tensor, pointer: int, size: int) -> None:
        _, holders = self._alive.get(pointer, (size, 0))
        if holders == 0:
            self.now += size
            self.peak = max(self.peak, self.now)
        self._alive[pointer] = (size, holders + 1)
        weakref.finalize(tensor, self._release, pointer).atexit = False

    def _release(self, pointer: int) -> None:
        size, holders = self._alive[pointer]
        self._alive[pointer] = (size, holders - 1)
        if holders == 1:
            self.now -= size
            del self._alive[pointer]


class Watched:
    """A step whose every reading happens inside a mode; what the model does between is not seen."""

    def __init__(self, step: Any, mode: TorchDispatchMode) -> None:
        self._step, self._mode = step, mode
        self.plans = step.plans

    def attend(self, *args: Any, **kwargs: Any) -> Tensor:
        """As Step.attend."""
        with self._mode:
            out: Tensor = self._step.attend(*args, **kwargs)
        return out


@contextmanager
def watched(memory: Memory, mode: TorchDispatchMode) -> Iterator[None]:
    """Inside, all that the memory does in its steps (planning, reading, writing) is seen by the mode."""
    real: Callable[..., Any] = memory.step

    @contextmanager
    def step(*args: Any, **kwargs: Any) -> Iterator[Watched]:
        planning = real(*args, **kwargs)
        with mode:
            planned = planning.__enter__()
        try:
            yield Watched(planned, mode)
        except BaseException as error:
            planning.__exit__(type(error), error, error.__traceback__)
            raise
        planning.__exit__(None, None, None)

    memory.step = step  # type: ignore[method-assign]
    try:
        yield
    finally:
        del memory.step  # type: ignore[method-assign]
