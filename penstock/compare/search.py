"""Plain text search over the log of a stream: which passage shares the rarest words with a question.

The log's tokens are decoded and cut into lines, long lines into passages of at most `LONGEST` tokens.  A passage's
score is the sum over the question's words that it holds of log(passages / passages with that word); of equal ones the
newest wins.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

LONGEST = 64  # tokens of a passage
_OVERLAP = 16  # tokens that neighbouring passages of one line share

_WORD = re.compile(r"\w+")


class TextSearch:
    """An index of the passages of a stream, asked as of any moment of it."""

    def __init__(self, tokenizer: Any, ids: Sequence[int]) -> None:
        self.spans: list[tuple[int, int]] = []  # tokens of the passages, in stream order
        self._with: dict[str, list[int]] = defaultdict(list)  # word -> passages
        for start, end in _passages(tokenizer, ids):
            for word in sorted(set(_words(tokenizer.decode(ids[start:end], skip_special_tokens=True)))):
                self._with[word].append(len(self.spans))
            self.spans.append((start, end))
        self._ends = [end for _, end in self.spans]

    def best(self, question: str, at: int) -> tuple[int, int] | None:
        """Tokens [start, end) of the best passage that had ended when `at` tokens were read."""
        known = bisect_right(self._ends, at)
        scores: dict[int, float] = defaultdict(float)
        for word in set(_words(question)):
            found = self._with.get(word, ())
            count = bisect_right(found, known - 1)
            if 0 < count <= known / 2 or count == 1:
                weight = math.log(known / count) + 1e-3
                for passage in found[:count]:
                    scores[passage] += weight
        if not scores:
            return None
        return self.spans[max(scores, key=lambda passage: (round(scores[passage], 9), passage))]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _passages(tokenizer: Any, ids: Sequence[int]) -> list[tuple[int, int]]:
    @lru_cache(maxsize=1 << 16)
    def ends_line(token: int) -> bool:
        return "\n" in tokenizer.decode([token])

    out, start = [], 0
    for index, token in enumerate(ids):
        if ends_line(token) or index == len(ids) - 1:
            out += _pieces(start, index + 1)
            start = index + 1
    return out


def _pieces(start: int, end: int) -> list[tuple[int, int]]:
    out = [(start, min(end, start + LONGEST))]
    while out[-1][1] < end:
        begin = out[-1][1] - _OVERLAP
        out.append((begin, min(end, begin + LONGEST)))
    return out
