"""What a source of video gives: frames in the order of their times, and sentences about what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from penstock.core import Frame

Trouble = Literal["resized", "corrupt", "timestamps", "stalled", "reconnecting", "ended", "skipped"]


@dataclass(frozen=True, slots=True)
class Notice:
    """Something happened to a source that lives on; one sentence for people."""

    t: float  # seconds of stream time
    kind: Trouble
    text: str


class FrameSource(Protocol):
    """A stream of frames.  Problems at its start are InputErrors, later ones are notices."""

    @property
    def name(self) -> str:
        """What it is, for people; never with a password in it."""

    @property
    def is_endless(self) -> bool:
        """Whether it goes on until somebody stops it."""

    @property
    def is_live(self) -> bool:
        """Whether frames come when they come: who is slow misses some."""

    @property
    def rate(self) -> float | None:
        """Frames per second, as far as it is known beforehand."""

    def frames(self) -> Iterator[Frame | Notice]:
        """From the beginning; times never go back, indices count from 0."""

    def close(self) -> None:
        """Let go of files, devices and connections; `frames` ends soon after."""


__all__ = ["Frame", "FrameSource", "Notice", "Trouble"]
