"""Rows full of statements that are easily confused, as retrieval shows them: the blocks most like a question.

    "packed"   first tokens | blocks cut around statements, each whole or without its ends | a window | questions
    "stream"   a contiguous stream dense with statements | questions

Keys share words and digits with earlier ones; every combination of what is shared comes up.  Only statements that stand
whole in the row are asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from penstock.worlds.facts import Fact, FactsWorld
from penstock.worlds.tokenizer import BOS_ID
from penstock.worlds.words import ADJECTIVES, NOUNS

_KEPT = (0.35, 0.6, 0.8)  # chance that a look-alike takes over a word or a digit; one of these per row
_FAMILIES = (1, 2, 4, 8)  # keys that look-alikes are derived from
_ALIKE = 0.75  # share of the keys that are look-alikes
_QUESTION = 12  # tokens of a question with its answer, about


class Said(NamedTuple):
    """A statement as token ids, between the text before and behind it."""

    fact: Fact
    before: list[int]
    statement: list[int]
    after: list[int]


def lookalike(key: str, kept: float, rng: random.Random) -> str:
    """A key in which each word and digit of `key` stays with chance `kept`; what does not stay may still be equal."""
    adjective, noun, number = key.split(" ")
    digits = "".join(digit if rng.random() < kept else str(rng.randrange(10)) for digit in number)
    first = adjective if rng.random() < kept else rng.choice(ADJECTIVES)
    second = noun if rng.random() < kept else rng.choice(NOUNS)
    return f"{first} {second} {digits}"


def say(
    encode: Callable[[str], list[int]], world: FactsWorld, passage: int, count: int, rng: random.Random
) -> tuple[list[Said], int]:
    """`count` statements under keys of their own, and the next passage that was not used."""
    kept, families = rng.choice(_KEPT), rng.choice(_FAMILIES)
    out: list[Said] = []
    known: set[str] = set()
    while len(out) < count:
        made = world.passage(passage)
        passage += 1
        if made.fact is None:
            continue
        key = made.fact.key
        if out and rng.random() < _ALIKE:
            key = lookalike(rng.choice(out[:families]).fact.key, kept, rng)
        if key in known:
            continue
        known.add(key)
        fact = Fact(key, made.fact.value, made.fact.index)
        before, statement, after = made.split()
        statement = statement.replace(made.fact.statement, fact.statement)
        out.append(Said(fact, encode(before), encode(statement), encode(after)))
    return out, passage


def _block(said: Said, size: int, neighbour: Sequence[int], rng: random.Random) -> tuple[list[int], bool]:
    """`size` tokens or more around a statement, and whether it is whole; a third of the blocks cut it."""
    ids = [*neighbour, *said.before, *said.statement, *said.after]
    start = len(neighbour) + len(said.before)
    spare = size - len(said.statement)
    shift = rng.randint(0, max(0, spare)) if rng.random() < 0.67 else rng.randint(-4, max(0, spare) + 4)
    first = max(0, start - shift)
    last = max(first + size, start + len(said.statement)) if shift >= 0 else first + size
    return ids[first:last], first <= start and start + len(said.statement) <= min(last, len(ids))


def packed(said: Sequence[Said], size: int, sinks: int, room: int, rng: random.Random) -> tuple[list[int], list[Fact]]:
    """About `room` tokens: the first ones, blocks of `size`, and a window; and the facts that stand whole in them."""
    ids = ([BOS_ID] if sinks else []) + [*said[0].before, *said[0].statement, *said[0].after][: max(0, sinks - 1)]
    whole: list[Fact] = []
    window = rng.randint(0, max(1, room // 3))
    rest = 1
    while rest < len(said) and len(ids) < room - window:
        block, complete = _block(said[rest], size, said[rest - 1].after, rng)
        ids += block
        whole += [said[rest].fact] * complete
        rest += 1
    recent, seen = contiguous(said[rest:], room - len(ids))
    return ids + recent, whole + seen


def contiguous(said: Sequence[Said], room: int) -> tuple[list[int], list[Fact]]:
    """Up to `room` tokens of statements with the text around them; and the facts that stand whole in them."""
    ids: list[int] = []
    whole: list[Fact] = []
    for each in said:
        ids += [*each.before, *each.statement]
        if len(ids) > room:
            break
        whole.append(each.fact)
        ids += each.after
    return ids[: max(0, room)], whole


def num_questions(length: int, rng: random.Random) -> int:
    """How many questions a row of `length` tokens ends with: up to two fifths of it."""
    return rng.randint(2, max(3, length * 2 // (5 * _QUESTION)))
