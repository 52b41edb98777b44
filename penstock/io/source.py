"""The contract of a text source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class TextSource(Protocol):
    """UTF-8 text as bytes, cut anywhere.  Problems are InputErrors, found when it is made where that is possible."""

    @property
    def name(self) -> str:
        """What it is, for people."""

    @property
    def is_endless(self) -> bool:
        """Whether it goes on until somebody stops it."""

    @property
    def notes(self) -> list[str]:
        """Sentences about what was left out so far."""

    def pieces(self, size: int) -> Iterator[bytes]:
        """At most `size` bytes at a time, no byte earlier than it is asked for.

        An empty piece says that nothing has arrived yet: the reader gets control a few times per second.
        """
