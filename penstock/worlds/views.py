"""Training rows: what a model sees of a stream through a bounded memory, with questions about what is still visible.

A row is token ids and a weight per token (the loss of predicting that token is multiplied by it). Kinds of rows:

    stream      a contiguous piece of the facts world, questions in between
    scattered   [BOS and the first tokens] + far blocks of 16 to 64 tokens + the recent window, then questions
    lookalikes  statements that are easily confused, close together, then questions (`penstock.worlds.lookalikes`)
    copy        segments of noise that come twice; only the second time can be predicted
    text        a contiguous piece of library text
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from penstock.worlds import lookalikes
from penstock.worlds.facts import Fact, FactsWorld
from penstock.worlds.tokenizer import BOS_ID, VOCABULARY

_FIRST_ORDINARY_ID = 2  # after BOS and EOS
BLOCKS = (16, 24, 32, 48, 64)


class Encoder(Protocol):
    """Text to token ids, without BOS; must allow encoding piece by piece."""

    def __call__(self, text: str) -> list[int]: ...


class Row(NamedTuple):
    """Token ids and the loss weight of each token (of predicting it from those before), equally long."""

    ids: list[int]
    weights: list[float]


class Placed(NamedTuple):
    """A fact whose statement is tokens start .. end-1 of a stream."""

    fact: Fact
    start: int
    end: int


@dataclass
class Stream:
    """A tokenized piece of the facts world and where each fact stands in it."""

    ids: list[int] = field(default_factory=list)
    facts: list[Placed] = field(default_factory=list)


def _near_miss(fact: Fact, other: Fact, rng: random.Random) -> Fact:
    """The fact under a key that shares its words with another one: only the number tells them apart."""
    words = other.key.rsplit(" ", 1)[0]
    number = rng.randrange(1000)
    key = f"{words} {number:03d}"
    return fact if key == other.key else Fact(key, fact.value, fact.index)


@dataclass
class Rows:
    """Makes rows of `length` tokens.

    Args:
        encode: text to ids.
        length: tokens per row.
        world: where facts come from; passages are taken in order, none twice.
        answer_weight, other_weight: loss weights of answer tokens and of all others in rows with facts.
        near_misses: share of the facts that take over the words of an earlier key, with another number.
    """

    encode: Encoder
    length: int
    world: FactsWorld
    answer_weight: float = 1.0
    other_weight: float = 0.02
    near_misses: float = 0.15
    next_passage: int = 0

    def extend(self, stream: Stream, rng: random.Random) -> None:
        """Append the next passage."""
        passage = self.world.passage(self.next_passage)
        self.next_passage += 1
        before, statement, after = passage.split()
        stream.ids += self.encode(before)
        if passage.fact is not None:
            fact = passage.fact
            if stream.facts and rng.random() < self.near_misses:
                fact = _near_miss(fact, rng.choice(stream.facts).fact, rng)
                if all(fact.key != placed.fact.key for placed in stream.facts):
                    statement = statement.replace(passage.fact.statement, fact.statement)
                else:
                    fact = passage.fact
            start = len(stream.ids)
            stream.ids += self.encode(statement)
            stream.facts.append(Placed(fact, start, len(stream.ids)))
            stream.ids += self.encode(after)

    def _question(self, fact: Fact) -> Row:
        question, answer, stop = self.encode(fact.question), self.encode(fact.answer), self.encode(".\n")
        low = self.other_weight
        weights = [low] * len(question) + [self.answer_weight] * len(answer) + [low] * len(stop)
        return Row(question + answer + stop, weights)

    def stream(self, rng: random.Random, bos: bool = True) -> Row:
        """Passages with questions in between, each about a fact stated anywhere before and not asked yet."""
        row = Row([BOS_ID] if bos else [], [0.0] if bos else [])
        open_facts: list[Fact] = []
        lead = rng.random()  # how readily a row asks: from a question after each passage to one burst at the end
        while len(row.ids) < self.length:
            piece = Stream()
            self.extend(piece, rng)
            cut = 0 if bos or row.ids else rng.randrange(len(piece.ids))
            row.ids.extend(piece.ids[cut:])
            row.weights.extend([self.other_weight] * (len(piece.ids) - cut))
            open_facts += [placed.fact for placed in piece.facts if placed.start >= cut]
            near_end = len(row.ids) > self.length - 14 * min(len(open_facts), 6)
            while open_facts and (near_end or rng.random() < lead) and len(row.ids) < self.length:
                asked = self._question(open_facts.pop(rng.randrange(len(open_facts))))
                row.ids.extend(asked.ids)
                row.weights.extend(asked.weights)
        return Row(row.ids[: self.length], row.weights[: self.length])

    def scattered(self, rng: random.Random, sinks: bool = True) -> Row:
        """First tokens, far blocks in stream order, the recent window, then questions about complete facts in view."""
        num_questions = rng.randint(1, 5)
        room = self.length - 14 * num_questions
        block = rng.choice([size for size in BLOCKS if size * 2 <= room])
        num_sinks = rng.choice((4, 4, 4, 8, 16)) if sinks else 0
        num_blocks = rng.randint(1, max(1, (room - num_sinks) * 3 // (4 * block)))
        window = max(1, room - num_sinks - num_blocks * block)
        stream = Stream([BOS_ID])
        while len(stream.ids) < room * 3 + window:
            self.extend(stream, rng)
        begin = len(stream.ids) - window
        starts = self._block_starts(stream, rng, num_blocks, block, num_sinks, begin)
        spans = [(0, num_sinks), *((start, start + block) for start in starts), (begin, len(stream.ids))]
        ids = [token for start, end in spans for token in stream.ids[start:end]]
        weights = [self.other_weight] * len(ids)
        seen = [p.fact for p in stream.facts if any(start <= p.start and p.end <= end for start, end in spans)]
        rng.shuffle(seen)
        return self._asked(ids, weights, seen, rng)

    def lookalikes(self, rng: random.Random, sinks: bool = True) -> Row:
        """Blocks, or a stream, full of statements that are easily confused, then questions about those in view."""
        count = lookalikes.num_questions(self.length, rng)
        room = self.length - 12 * count - sinks
        said, self.next_passage = lookalikes.say(self.encode, self.world, self.next_passage, max(3, room // 10), rng)
        if rng.random() < 0.6:
            first = rng.choice((4, 8, 16, 32)) if sinks else 0
            ids, whole = lookalikes.packed(said, rng.choice((12, 16, 16, 16, 24, 32)), first, room, rng)
        else:
            ids, whole = lookalikes.contiguous(said, room)
            ids = [BOS_ID] * sinks + ids
        weights = [self.other_weight] * len(ids)
        rng.shuffle(whole)
        return self._asked(ids, weights, whole, rng)

    def _asked(self, ids: list[int], weights: list[float], facts: list[Fact], rng: random.Random) -> Row:
        """The row with a question about each fact, as many as fit."""
        for fact in facts:
            asked = self._question(fact)
            ids += asked.ids
            weights += asked.weights
            if len(ids) >= self.length:
                break
        return self._filled(ids, weights, rng)

    def _filled(self, ids: list[int], weights: list[float], rng: random.Random) -> Row:
        """Nothing left to ask: the stream goes on."""
        while len(ids) < self.length:
            more = Stream()
            self.extend(more, rng)
            ids += more.ids
            weights += [self.other_weight] * len(more.ids)
        return Row(ids[: self.length], weights[: self.length])

    def _block_starts(
        self, stream: Stream, rng: random.Random, num_blocks: int, block: int, low: int, high: int
    ) -> list[int]:
        """Starts of non-overlapping blocks between two indices; about half are put around a fact."""
        starts: list[int] = []
        for _ in range(num_blocks * 4):
            if len(starts) == num_blocks:
                break
            start = rng.randrange(low, high - block + 1)
            if rng.random() < 0.6 and stream.facts:
                placed = rng.choice(stream.facts)
                start = placed.start - rng.randint(0, max(0, block - (placed.end - placed.start)))
            if low <= start <= high - block and all(abs(start - other) >= block for other in starts):
                starts.append(start)
        return sorted(starts)

    def copy(self, rng: random.Random, tokens: Sequence[int] = ()) -> Row:
        """A segment of noise (or of `tokens`, a long text) and the same again; weight 1 where it can be predicted."""
        size = rng.randint(self.length // 4, self.length // 2)
        if len(tokens) > size and rng.random() < 0.3:
            at = rng.randrange(len(tokens) - size)
            segment = list(tokens[at : at + size])
        else:
            segment = [rng.randrange(_FIRST_ORDINARY_ID, VOCABULARY) for _ in range(size)]
        gap = [rng.randrange(_FIRST_ORDINARY_ID, VOCABULARY) for _ in range(rng.randint(0, self.length - 2 * size))]
        ids, weights = [BOS_ID, *segment, *gap, *segment], [0.0] * (1 + size + len(gap)) + [0.0] + [1.0] * (size - 1)
        filler = self.length - len(ids)
        if filler < 0:
            return Row(ids[: self.length], weights[: self.length])
        ids += [rng.randrange(_FIRST_ORDINARY_ID, VOCABULARY) for _ in range(filler)]
        return Row(ids, weights + [0.0] * filler)

    def text(self, rng: random.Random, tokens: Sequence[int], bos: bool = True) -> Row:
        """A contiguous piece of a long text, every token with weight 1."""
        size = self.length - bos
        at = rng.randrange(len(tokens) - size)
        return Row([BOS_ID] * bos + list(tokens[at : at + size]), [0.0] * bos + [1.0] * size)
