"""Families whose attention cannot be reached through the interface: one small file each, named by its model type.

These are the only places where an attention forward is replaced.  An adapter module defines `Adapter(hf)` with

    use(step)         context manager: attention layers read this step
    suspended()       context manager: attention layers are the model's own again
    remove()          undo the replacement
    encoding(layer)   the layer's encoding when probing cannot see it (ALiBi), else None
    tolerance         how far the model's own logits may be off in the self-check

Several adapters may sit on one model: they share a seat, and the replacement goes when the last one is removed.
Without a step in the seat the model is itself.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from penstock.memory import Alibi, Geometry

_SEAT = "_penstock_seat"


@dataclass
class Seat:
    """Where a model's replaced layers find the step of the running forward pass."""

    users: int = 0
    geometry: Geometry | None = None  # as probed and checked by the first attachment
    step: Any = None
    forwards: dict[nn.Module, Any] = field(default_factory=dict)  # replaced layers and their own forward
    alibi: Alibi | None = None  # the bias of all layers, as seen in a pass


class Replacement(ABC):
    """The common part of adapters: subclasses name the layer class and give its forward.

    `attend(module, seat, *args, **kwargs)` takes what the layer's forward takes and gives what it gives.
    """

    layer_class: type[nn.Module]
    tolerance = 1e-3  # of the self-check in float32, as a share of the largest logit

    def __init__(self, hf: nn.Module) -> None:
        self.hf = hf
        self.seat: Seat = hf.__dict__.setdefault(_SEAT, Seat())
        self.seat.users += 1
        self._removed = False
        if self.seat.users == 1:
            for module in hf.modules():
                if isinstance(module, self.layer_class):
                    self.seat.forwards[module] = module.__dict__.get("forward")
                    module.forward = functools.partial(self._forward, self.attend, module, module.forward, self.seat)

    @staticmethod
    def _forward(
        attend: Callable[..., Any], module: nn.Module, own: Callable[..., Any], seat: Seat, *args: Any, **kwargs: Any
    ) -> Any:
        return own(*args, **kwargs) if seat.step is None else attend(module, seat, *args, **kwargs)

    @staticmethod
    @abstractmethod
    def attend(module: nn.Module, seat: Seat, *args: Any, **kwargs: Any) -> Any:
        """The layer's forward with a step."""

    @contextmanager
    def use(self, step: Any) -> Iterator[None]:
        """Inside, attention layers read `step`; uses may nest."""
        before, self.seat.step = self.seat.step, step
        try:
            yield
        finally:
            self.seat.step = before

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside, attention layers are the model's own."""
        with self.use(None):
            yield

    def remove(self) -> None:
        """Leave the seat; the last one to leave gives the layers their own forward back."""
        if self._removed:
            return
        self._removed = True
        self.seat.users -= 1
        if self.seat.users == 0:
            for module, own in self.seat.forwards.items():
                del module.forward
                if own is not None:  # it was an instance attribute before us
                    module.forward = own
            del self.hf.__dict__[_SEAT]

    def encoding(self, layer: int) -> Alibi | None:
        """The ALiBi encoding that a recorded pass has shown, if any."""
        return self.seat.alibi


def alibi_of(bias: Tensor, key: int, scale: float = 1.0) -> Alibi:
    """The encoding behind a bias [..., Hq, 1, T] that is linear in the position, from the step at `key` and the next.

    Give the two keys whose biases are smallest: one of them is zero, so the other is the slope without rounding.
    """
    pair = bias.float().flatten(0, -3)[:, 0]
    return Alibi(((pair[:, key + 1] - pair[:, key]) * scale).cpu())


def adapter_for(hf: nn.Module) -> Any:
    """An installed adapter for the model's family, or None when the family needs none."""
    if not has_adapter(hf):
        return None
    config: Any = hf.config
    return importlib.import_module(f"{__name__}.{config.model_type}").Adapter(hf)


def has_adapter(hf: nn.Module) -> bool:
    """Whether the model's family is attached through an adapter file."""
    config: Any = hf.config
    return importlib.util.find_spec(f"{__name__}.{config.model_type}") is not None
