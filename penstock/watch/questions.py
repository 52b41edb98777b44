"""Questions and when they are asked: at a second of the stream, or at its end; and which moment they are about."""

from __future__ import annotations

import heapq
import math
import re
from dataclasses import dataclass, field

from penstock.errors import UsageError

_ABOUT = re.compile(
    r"\b(?:at|around|about|near|after|before|by|since|second|minute)\s+"
    r"(?:(?:second|minute|time)\s+)?(?:(?:(\d+):)?(\d{1,3}):(\d{2}(?:\.\d+)?)|(\d+(?:\.\d+)?)\s*(ms|s|sec|seconds?|min|minutes?)\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, order=True)
class Question:
    """Asked at second `at` of the stream (infinity: at its end), behind every frame up to then."""

    at: float
    number: int  # questions of one second are asked in this order
    text: str = field(compare=False)


def parse_question(text: str, number: int = 0) -> Question:
    """Read TEXT@SECONDS (at the last @; also MM:SS), or TEXT, which is asked at the end."""
    words, at, when = text.rpartition("@")
    if not at:
        words, seconds = text, math.inf
    else:
        found = seconds_of(when.strip())
        if found is None:
            raise UsageError(
                f"cannot read the time {when!r} of --ask: write TEXT@SECONDS, as in 'What is there?@12.5'."
            )
        seconds = found
    if not words.strip():
        raise UsageError(f"--ask {text!r} has no question: write TEXT@SECONDS.")
    return Question(seconds, number, words)


def seconds_of(text: str) -> float | None:
    """Seconds from `12.5`, `12.5s`, `1:02` or `1:02:03`; None if it is none of these."""
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)s?", text)
    return None if match is None else int(match[1] or 0) * 3600 + int(match[2] or 0) * 60 + float(match[3])


def about(text: str) -> float | None:
    """The second of the stream that a question names (`at 12 s`, `around 1:30`); None if it names none."""
    match = _ABOUT.search(text)
    if match is None:
        return None
    hours, minutes, seconds, number, unit = match.groups()
    if number is None:
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds)
    scale = {"ms": 0.001, "mi": 60.0}.get(unit[:2].lower(), 1.0)
    return float(number) * scale


class Agenda:
    """Questions that wait for their time."""

    def __init__(self, questions: list[Question] | None = None) -> None:
        self._waiting = list(questions or [])
        heapq.heapify(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, question: Question) -> None:
        heapq.heappush(self._waiting, question)

    def due(self, before: float) -> Question | None:
        """The next question whose time is earlier than `before`: no frame of that time or later has been seen."""
        return heapq.heappop(self._waiting) if self._waiting and self._waiting[0].at < before else None

    def rest(self) -> Question | None:
        """The next question at the end of the stream, whatever its time."""
        return heapq.heappop(self._waiting) if self._waiting else None
