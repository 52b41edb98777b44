"""Timed text: WebVTT and SRT captions, lines that begin with a time.  Pure; streams of their own, merged by time."""

from __future__ import annotations

import heapq
import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import InputError

_CLOCK = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_CUE = re.compile(rf"\s*{_CLOCK}\s*-->\s*{_CLOCK}")
_LINE = re.compile(r"\s*\[?(?:(?:(\d+):)?(\d{1,2}):(\d{2}(?:[.,]\d+)?)|(\d+(?:\.\d+)?)\s*s?)\]?[\s,;|:]\s*(.+)")
_TAG = re.compile(r"<[^>]*>|\{\\[^}]*\}")


@dataclass(frozen=True, slots=True)
class Caption:
    """Text that is heard or shown from t0 to t1, in seconds of stream time."""

    t0: float
    t1: float
    text: str

    @property
    def t(self) -> float:
        """When it is known: a caption is not read before it begins."""
        return self.t0


def read_captions(path: Path) -> list[Caption]:
    """The captions of a file (.vtt, .srt, or lines that begin with a time), in order of time."""
    try:
        text = path.read_text("utf-8-sig", "replace")
    except OSError as error:
        raise InputError(f"the captions {path} cannot be read ({error.strerror}): check the path.") from None
    found = parse_captions(text)
    if not found:
        raise InputError(f"{path} has no captions: give WebVTT, SRT, or lines such as '12.5 a door opens'.")
    return found


def parse_captions(text: str) -> list[Caption]:
    """Captions of any of the three kinds; what cannot be read is left out."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    found = list(_cues(text)) if "-->" in text else list(_lines(text))
    return sorted(found, key=lambda caption: caption.t0)


def _cues(text: str) -> Iterator[Caption]:
    for block in re.split(r"\n\s*\n", text):
        lines = block.strip("\n").split("\n")
        for i, line in enumerate(lines):
            match = _CUE.match(line)
            if match:
                body = " ".join(_clean(part) for part in lines[i + 1 :]).strip()
                t0, t1 = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
                if body:
                    yield Caption(t0, max(t0, t1), body)
                break


def _lines(text: str) -> Iterator[Caption]:
    for line in text.split("\n"):
        match = _LINE.match(line)
        if match is None:
            continue
        hours, minutes, seconds, plain, body = match.groups()
        if plain is not None:
            t = float(plain)
        else:
            t = int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
        if _clean(body):
            yield Caption(t, t, _clean(body))


def _clean(line: str) -> str:
    return html.unescape(_TAG.sub("", line)).strip()


def _seconds(parts: tuple[Any, ...]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000


def merge(*streams: Iterable[Any]) -> Iterator[Any]:
    """Items of several streams in order of their `t`; of equal times the earlier stream's comes first.

    Reads one item of each stream ahead, so a live stream holds the others back: give live streams their own thread.
    """
    return heapq.merge(*streams, key=lambda item: item.t)
