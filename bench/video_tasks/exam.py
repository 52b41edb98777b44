"""What every benchmark is read into: videos, and for each of them tests that ask at given seconds.

A test is a generator, because some decide by an answer whether to ask again:

    script    yields Ask(at, prompt), is sent the reply, ...
    outcome   reply of each ask -> score, by our strict rule and by the published one
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench.video_tasks import rules


class FormatError(ValueError):
    """An annotation file is not what it should be; one sentence."""


@dataclass(frozen=True)
class Ask:
    """One question: `prompt` as the benchmark words it, `plain` the bare question, both about the video up to `at`."""

    at: float  # seconds
    prompt: str
    plain: str
    options: tuple[str, ...] = ()  # without letters
    history: bool = False  # question and answer stay in the conversation of this video
    stands: bool = False  # a request that is put to a model that speaks up by itself
    polls: bool = False  # whether it is time to speak: a model that speaks up by itself is not asked


Script = Generator[Ask, str, None]


@dataclass(frozen=True)
class Exchange:
    """What was asked and answered."""

    at: float
    reply: str


@dataclass(frozen=True)
class Score:
    """Points between 0 and 1; None where the rule does not apply (judged elsewhere)."""

    strict: float | None
    published: float | None
    extra: dict[str, float] = field(default_factory=dict)


class Test(Protocol):
    """One test of a benchmark."""

    task: str
    group: str

    def script(self) -> Script:
        """The questions, one after the other in time."""

    def score(self, exchanges: Sequence[Exchange]) -> Score:
        """What the replies are worth; no exchange is a wrong answer."""


@dataclass(frozen=True)
class Video:
    """A file, relative to the folder of videos, and its tests in the order of the annotation file."""

    path: str
    tests: tuple[Test, ...]


@dataclass(frozen=True)
class Choice:
    """One question with options; `key` is the letter of the right one, `published` the benchmark's own rule."""

    task: str
    group: str
    at: float
    question: str
    options: tuple[str, ...]
    key: str
    prompt: str
    published: Callable[[str, str], bool] = field(compare=False)

    def script(self) -> Script:
        yield Ask(self.at, self.prompt, self.question, self.options)

    def score(self, exchanges: Sequence[Exchange]) -> Score:
        reply = exchanges[0].reply if exchanges else ""
        found = rules.letter(reply, self.options) == self.key
        return Score(float(found), float(self.published(reply, self.key)), {"answered": float(bool(reply.strip()))})


def seconds(text: Any) -> float:
    """Seconds from a number, `SS`, `MM:SS` or `HH:MM:SS`.

    Raises:
        FormatError: anything else.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return float(text)
    parts = str(text).strip().split(":")
    if not 1 <= len(parts) <= 3 or not all(re.fullmatch(r"\d+(\.\d+)?", part) for part in parts):
        raise FormatError(f"{text!r} is not a time: expected seconds, MM:SS or HH:MM:SS")
    total = 0.0
    for part in parts:
        total = 60 * total + float(part)
    return total


def bare(option: str) -> str:
    """An option without its letter."""
    return re.sub(r"^\(?[A-H][.):]\s*", "", option.strip())


def lettered(options: Sequence[str]) -> str:
    """Options one per line, each with its letter."""
    return "\n".join(f"{chr(65 + i)}. {option}" for i, option in enumerate(options))


def options_of(entry: Any) -> tuple[tuple[str, ...], str]:
    """Options without letters, and the letter of the right one.

    Raises:
        FormatError: the answer is none of the options.
    """
    options, key = need(entry, "options", "answer")
    found = tuple(bare(str(option)) for option in listed(options, "'options'"))
    letter = str(key).strip().upper()[:1]
    if not letter or not 0 <= ord(letter) - 65 < len(found):
        raise FormatError(f"the answer {key!r} of {entry.get('question')!r} is none of its {len(found)} options")
    return found, letter


def need(entry: Any, *names: str) -> list[Any]:
    """The fields of an entry.

    Raises:
        FormatError: one is missing.
    """
    if not isinstance(entry, dict):
        raise FormatError(f"expected an object with {', '.join(names)}, found {type(entry).__name__}")
    missing = [name for name in names if name not in entry]
    if missing:
        raise FormatError(f"an entry has no {missing[0]!r}: it has {', '.join(map(str, entry)) or 'nothing'}")
    return [entry[name] for name in names]


def listed(value: Any, what: str) -> list[Any]:
    """The value, if it is a list.

    Raises:
        FormatError: it is not.
    """
    if not isinstance(value, list):
        raise FormatError(f"{what} should be a list, found {type(value).__name__}")
    return value
