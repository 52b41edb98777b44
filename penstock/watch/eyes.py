"""What a watcher needs of a model that sees: encode a unit of frames, then read the tokens that are worth it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

from penstock.core import Frame
from penstock.reducers import Moment, Reduced


class Eyes(Protocol):
    """Vision tower and language model, apart, so that they overlap and tokens can be dropped between them."""

    @property
    def unit(self) -> int:
        """Frames that are encoded together."""

    def encode(self, frames: Sequence[Frame]) -> Moment:
        """The tokens of at most `unit` frames; called from a thread of its own, in the order of the stream."""

    def read(self, visual: Moment, reduced: Reduced, into: Any = None) -> int:
        """Put the tokens that stay into the session's memory, or into that of a fork; returns how many entered."""


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

    def decode(self, token: int) -> Tensor: ...

    def reply(self, question: str | None = None, *, remember: bool = True, max_new: int = 128) -> Iterator[str]: ...
