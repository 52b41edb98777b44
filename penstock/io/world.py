"""Endless texts that need no file: generated worlds, and the library of the running Python."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator

from penstock.io.source import TextSource
from penstock.worlds.facts import FactsWorld
from penstock.worlds.library import heldout_text


class _Texts(ABC):
    """A source over texts."""

    is_endless = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.notes: list[str] = []

    @abstractmethod
    def texts(self) -> Iterable[str]:
        """The texts, without end."""

    def pieces(self, size: int) -> Iterator[bytes]:
        for text in self.texts():
            data = text.encode("utf-8", "replace")
            for start in range(0, len(data), size):
                yield data[start : start + size]


class FactsSource(_Texts):
    """The facts world of a seed: facts stated once, among distractors, for ever."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(f"the facts world of seed {seed}")
        self._world = FactsWorld(seed)

    def texts(self) -> Iterator[str]:
        return (passage.text for passage in self._world)


class LibrarySource(_Texts):
    """The files of Python's standard library that are held out of training, again and again."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(f"the held-out standard library of Python {platform.python_version()}")
        next(heldout_text())  # raises InputError where an installation has no sources

    def texts(self) -> Iterator[str]:
        while True:
            yield from heldout_text()


WORLDS: dict[str, Callable[[int], TextSource]] = {"facts": FactsSource, "library": LibrarySource}
"""Worlds by name, each made from a seed."""
