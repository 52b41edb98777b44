"""The facts world: an endless text in which facts are stated once, among distractors, and can be asked for at any time.

    Note: brave otter 483 is amber.          the statement, somewhere inside a passage
    \\nAsk: brave otter 483 is                the question; the next token must be " amber"

A passage is a function of the seed and its index alone, so a stream restarts anywhere without replaying. The world
knows nothing of tokens: offsets are characters.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from penstock.errors import InputError
from penstock.worlds.words import ADJECTIVES, ANSWERS, NOUNS, PLACES, SENTENCES, TIMES

Filler = Callable[[random.Random], str]

_NUMBERS = 1000
_KEYS = len(ADJECTIVES) * len(NOUNS) * _NUMBERS
_HALF_BITS = 12  # two halves of 12 bits cover 16.7 million indices, more than there are keys


@dataclass(frozen=True)
class Fact:
    """One thing to remember: `key` is `value`; `index` is the index of the passage that states it."""

    key: str
    value: str
    index: int

    @property
    def statement(self) -> str:
        """The sentence that states the fact, without surrounding space."""
        return f"Note: {self.key} is {self.value}."

    @property
    def question(self) -> str:
        """The text to feed, after which the model's next token should be `answer`."""
        return f"\nAsk: {self.key} is"

    @property
    def answer(self) -> str:
        """The right continuation of `question`: a space and one word, one token of the shipped tokenizer."""
        return f" {self.value}"


@dataclass(frozen=True)
class Passage:
    """A line of the stream; it never begins with white space and always ends with a line end.

    `offset` is where `fact.statement` begins in `text`, in characters; -1 when there is no fact.
    """

    text: str
    fact: Fact | None
    index: int
    offset: int

    def split(self) -> tuple[str, str, str]:
        """Text before the statement, the statement (with its leading space, if it has one), and the rest.

        The three are split where the shipped tokenizer splits too, so they may be encoded one by one. Without a
        fact the second is empty.
        """
        if self.fact is None:
            return self.text, "", ""
        start = self.offset - (self.offset > 0)
        end = self.offset + len(self.fact.statement)
        return self.text[:start], self.text[start:end], self.text[end:]


def _mix(value: int, key: int) -> int:
    """A 12-bit hash of a 12-bit value."""
    x = (value * 0x9E3779B1 + key) & 0xFFFFFFFF
    x ^= x >> 15
    x = (x * 0x85EBCA6B) & 0xFFFFFFFF
    x ^= x >> 13
    return x & ((1 << _HALF_BITS) - 1)


class FactsWorld:
    """An endless stream of passages, the same for the same seed.

    Args:
        seed: names the stream.
        density: share of the passages that state a fact, 0 to 1.
        sentences: smallest and largest number of distractor sentences in a passage.
        filler: gives foreign text (one or more lines) to stand in place of the generated sentences.
        filler_share: share of the passages that use the filler.

    Raises:
        InputError: a share outside 0 to 1, or an empty range of sentences.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        density: float = 0.5,
        sentences: tuple[int, int] = (1, 4),
        filler: Filler | None = None,
        filler_share: float = 0.5,
    ) -> None:
        if not 0.0 <= density <= 1.0 or not 0.0 <= filler_share <= 1.0:
            raise InputError(f"density {density} and filler_share {filler_share} are shares: give values from 0 to 1.")
        if not 0 <= sentences[0] <= sentences[1]:
            raise InputError(
                f"sentences {sentences} is not a range: give a smallest and a largest number, such as (1, 4)."
            )
        self.seed = seed
        self.density = density
        self.sentences = sentences
        self.filler = filler
        self.filler_share = filler_share
        digest = hashlib.blake2b(f"facts:{seed}".encode(), digest_size=16).digest()
        self._round_keys = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]

    @property
    def chance(self) -> float:
        """Recall of a guess that knows the world but has not read the statement."""
        return 1.0 / len(ANSWERS)

    @property
    def num_keys(self) -> int:
        """How many passages pass before a key can come again."""
        return _KEYS

    @property
    def answers(self) -> tuple[str, ...]:
        """Every possible answer, as text to compare `Fact.answer` with."""
        return tuple(f" {word}" for word in ANSWERS)

    def _permute(self, index: int) -> int:
        """A seeded bijection of 0 .. num_keys-1 (a four-round Feistel network, walked until inside)."""
        x = index % _KEYS
        while True:
            left, right = x >> _HALF_BITS, x & ((1 << _HALF_BITS) - 1)
            for key in self._round_keys:
                left, right = right, left ^ _mix(right, key)
            x = (left << _HALF_BITS) | right
            if x < _KEYS:
                return x

    def fact(self, index: int) -> Fact:
        """The fact that belongs to a passage index, whether or not that passage states it."""
        code, number = divmod(self._permute(index), _NUMBERS)
        noun, adjective = divmod(code, len(ADJECTIVES))
        value = random.Random(f"value:{self.seed}:{index}").choice(ANSWERS)
        return Fact(f"{ADJECTIVES[adjective]} {NOUNS[noun]} {number:03d}", value, index)

    def passage(self, index: int) -> Passage:
        """The passage at an index, 0 or more."""
        rng = random.Random(f"passage:{self.seed}:{index}")
        if self.filler is not None and rng.random() < self.filler_share:
            lines = [self.filler(rng).strip()]
        else:
            lines = [sentence(rng) for _ in range(rng.randint(*self.sentences))]
        if rng.random() >= self.density:
            return Passage((" ".join(lines) or sentence(rng)) + "\n", None, index, -1)
        fact = self.fact(index)
        place = rng.randint(0, len(lines))
        before = " ".join(lines[:place])
        offset = len(before) + 1 if before else 0
        return Passage(" ".join([*lines[:place], fact.statement, *lines[place:]]) + "\n", fact, index, offset)

    def passages(self, start: int = 0) -> Iterator[Passage]:
        """Passages from an index on, for ever."""
        return map(self.passage, count(start))

    __iter__ = passages


def sentence(rng: random.Random) -> str:
    """A distractor sentence: it uses the words of keys, but states nothing."""
    return rng.choice(SENTENCES).format(
        a=rng.choice(ADJECTIVES),
        n=rng.choice(NOUNS),
        m=rng.choice(NOUNS),
        p=rng.choice(PLACES),
        t=rng.choice(TIMES),
        d=rng.randint(2, 999),
    )
