"""The stream of a comparison: token ids, the same for every method, and where its facts stand."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from penstock.errors import InputError
from penstock.io import TextSource
from penstock.models.load import Model
from penstock.models.text import TextEncoder
from penstock.worlds import FactsWorld

_PIECE = 4096  # bytes asked of a source at once


@dataclass(frozen=True)
class Placed:
    """A fact in the stream: its statement is the tokens [start, end)."""

    key: str
    start: int
    end: int
    question: tuple[int, ...]  # token ids
    answer: tuple[int, ...]  # token ids


@dataclass(frozen=True)
class Stream:
    """Token ids and the facts stated in them, in stream order; a text from outside has no facts."""

    name: str
    ids: Sequence[int]
    facts: tuple[Placed, ...] = ()

    @cached_property
    def digest(self) -> str:
        """A hash of the token ids: the same text for the same tokenizer."""
        return hashlib.blake2b(array("q", self.ids).tobytes(), digest_size=16).hexdigest()


def _encoder(model: Model) -> TextEncoder:
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer: memories can only be compared on text with one.")
    return TextEncoder(model.tokenizer)


def _encoded(encoder: TextEncoder, text: str) -> list[int]:
    """The ids of a text that ends here."""
    return encoder.feed(text) + encoder.flush()


def facts_stream(model: Model, tokens: int, seed: int = 0, world: FactsWorld | None = None) -> Stream:
    """The first `tokens` tokens of the facts world of a seed: a fact in about 35 tokens, so that short streams have
    questions enough.

    A passage is encoded in three parts (before the statement, the statement, behind it), so that the statement has
    tokens of its own with any tokenizer.
    """
    encoder = _encoder(model)
    ids: list[int] = []
    facts: list[Placed] = []
    for passage in world or FactsWorld(seed, density=0.8, sentences=(0, 3)):
        before, statement, after = passage.split()
        ids += _encoded(encoder, before) if before else []
        if passage.fact is not None:
            start = len(ids) or len(encoder.prefix_ids)  # those come with the first text
            ids += _encoded(encoder, statement)
            if len(ids) <= tokens:
                facts.append(_placed(encoder, passage.fact.key, start, len(ids), passage.fact.question,
                                     passage.fact.answer))  # fmt: skip
        ids += _encoded(encoder, after) if after else []
        if len(ids) >= tokens:
            break
    return Stream(f"the facts world of seed {seed}", ids[:tokens], tuple(facts))


def _placed(encoder: TextEncoder, key: str, start: int, end: int, question: str, answer: str) -> Placed:
    asked = _encoded(encoder.copy(), question)
    whole = _encoded(encoder.copy(), question + answer)
    if whole[: len(asked)] != asked:  # the tokenizer joins the two: ask and answer as texts of their own
        behind = encoder.copy()
        _encoded(behind, question)
        whole = asked + _encoded(behind, answer)
    return Placed(key, start, end, tuple(asked), tuple(whole[len(asked) :]))


def text_stream(model: Model, source: TextSource, tokens: int) -> Stream:
    """The first `tokens` tokens of a text, or all of it; nobody knows what to ask about it."""
    encoder = _encoder(model)
    ids: list[int] = []
    for piece in source.pieces(_PIECE):
        ids += encoder.feed(piece)
        if len(ids) >= tokens:
            break
    else:
        ids += encoder.flush()
    if len(ids) < 2:
        raise InputError(f"{source.name} has no text that becomes tokens: give some text.")
    return Stream(source.name, ids[:tokens])
