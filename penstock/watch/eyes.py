"""What a watcher needs of a model that can see: encode a frame, then read the tokens of it that are worth reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from penstock.core import Frame
from penstock.reducers import Reduced, Visual


class Eyes(Protocol):
    """Vision tower and language model, apart, so that they overlap and tokens can be dropped between them."""

    def encode(self, frame: Frame) -> Visual:
        """The frame's tokens; called from a thread of its own, for one frame after the other."""

    def read(self, visual: Visual, reduced: Reduced) -> int:
        """Put the tokens that stay into the session's memory; returns how many entered."""


class Reader(Protocol):
    """What a watcher needs of a session (`penstock.Session` is one)."""

    @property
    def tokens(self) -> int: ...

    @property
    def logits(self) -> Tensor | None: ...

    @property
    def memory(self) -> Any: ...

    @property
    def model(self) -> Any: ...

    @property
    def turns(self) -> Any: ...

    def feed(self, data: str) -> int: ...

    def flush(self) -> int: ...

    def reply(self, question: str | None = None, *, remember: bool = True, max_new: int = 128) -> Iterator[str]: ...
