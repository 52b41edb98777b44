"""Speculative decoding: guesses of the next tokens, let in together with the token they follow.

The model's logits behind each guess say what it would have chosen there; guesses that were not chosen leave the memory
again (`Turn` in reply.py), which is exact for every memory that can be marked.  A guess is accepted exactly if the
answer's own draw, with its own generator, falls on it: rejection sampling for a guess that is certain of itself.  So an
answer has the same tokens with guesses and without, greedy or sampled, whatever the drafter says.

Memory is planned before anything starts (SpecMemo, arXiv:2506.01986): a mark holds what guesses overwrite, its bytes
are known by formula, and as many guesses are made as fit into `bytes` for all rows that may guess at once.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from penstock.core import parse_size
from penstock.errors import UnknownName, UsageError
from penstock.log import TokenLog
from penstock.memory import Memory
from penstock.memory.groups import mark_bytes
from penstock.models.load import Model
from penstock.reply import ROOM
from penstock.session import Session


class Drafter(Protocol):
    """Guesses the tokens behind `token`, which follows what the log holds."""

    name: str

    def guess(self, id: str, log: TokenLog, token: int, most: int) -> list[int]:
        """At most `most` token ids for the stream `id`."""

    def forget(self, id: str) -> None:
        """The stream has ended."""


def continuation(tokens: Sequence[int], most: int, longest: int = 4, shortest: int = 2) -> list[int]:
    """What followed the newest earlier occurrence of the longest suffix of `tokens` that occurs twice."""
    data = array("i", tokens)
    raw, width = data.tobytes(), data.itemsize
    for n in range(min(longest, len(data) - 1), shortest - 1, -1):
        suffix, end = raw[-n * width :], len(raw) - width
        while (at := raw.rfind(suffix, 0, end)) >= 0:
            if at % width == 0:
                return list(data[at // width + n :][:most])
            end = at + len(suffix) - 1  # bytes of two tokens: look further back
    return []


class NGram:
    """Guesses that what followed the last few tokens before follows them again.  Costs next to nothing."""

    name = "ngram"

    def __init__(self, longest: int = 4, shortest: int = 2, tail: int = 1024) -> None:
        self.longest, self.shortest, self.tail = longest, shortest, tail

    def guess(self, id: str, log: TokenLog, token: int, most: int) -> list[int]:
        """As Drafter.guess."""
        return continuation(
            [*log.slice(log.count - self.tail, log.count), token], most, self.longest, self.shortest
        )  # fmt: skip

    def forget(self, id: str) -> None:
        """Nothing is kept."""


class SmallModel:
    """Guesses what a smaller model of the same vocabulary would say; `keep` streams have a memory of it at once.

    It begins to follow a stream `behind` tokens before the first guess.
    """

    name = "model"

    def __init__(
        self, model: Model, memory: str = "streaming-llm", budget: int = 128, keep: int = 4, behind: int = 512
    ) -> None:
        self.model, self.memory, self.budget, self.keep, self.behind = model, memory, budget, keep, behind
        self._streams: OrderedDict[str, tuple[Session, int]] = OrderedDict()  # and where its stream begins in ours

    @property
    def nbytes(self) -> int:
        """Bytes of its memories."""
        return sum(session.memory.nbytes for session, _ in self._streams.values())

    def guess(self, id: str, log: TokenLog, token: int, most: int) -> list[int]:
        """As Drafter.guess."""
        session = self._follow(id, log)
        mark = session.mark(max_new=most + 1)
        out: list[int] = []
        while len(out) < most:
            token = int(session.decode(token).argmax())
            out.append(token)
        session.rollback(mark)
        session.commit(mark)
        return out

    def _follow(self, id: str, log: TokenLog) -> Session:
        """The stream's session, having read what the log holds: as far as it goes on from what it knows."""
        session, first = self._streams.get(id, (None, 0))
        if session is not None:
            known = first + session.tokens
            newest = session.log.slice(session.tokens - 32, session.tokens)
            if known > log.count or newest != log.slice(known - len(newest), known):
                session = None  # the stream was cut and goes on differently
        if session is None:
            first = log.count - min(self.behind, len(log.tail))
            session = Session(self.model, self.memory, self.budget, path="eager")
        session.ingest(log.slice(first + session.tokens, log.count))
        self._streams[id] = session, first
        self._streams.move_to_end(id)
        while len(self._streams) > self.keep:
            self._streams.popitem(last=False)
        return session

    def forget(self, id: str) -> None:
        """Give up its memory."""
        self._streams.pop(id, None)


@dataclass(frozen=True)
class Drafting:
    """How an engine guesses: `most` tokens at a time, while at most `answers` answers are under way.

    More answers share a step anyway, and a step of many rows has nothing to spare for guesses.
    """

    drafter: Drafter | str = "ngram"
    most: int = 4
    answers: int = 2
    bytes: int | str = "64MiB"  # that marks for guesses may hold

    def __post_init__(self) -> None:
        if isinstance(self.drafter, str) and self.drafter != NGram.name:
            raise UnknownName("drafter", self.drafter, [NGram.name])
        if self.most < 1 or self.answers < 1:
            raise UsageError("drafting guesses at least 1 token for at least 1 answer: leave it out for none.")


class Guesses:
    """The drafting of one engine, its memory planned."""

    def __init__(self, plan: Drafting, memory: Memory, vocabulary: int) -> None:
        self.drafter: Drafter = NGram() if isinstance(plan.drafter, str) else plan.drafter
        if isinstance(self.drafter, SmallModel) and self.drafter.model.attached.vocabulary != vocabulary:
            raise UsageError(
                f"the drafter has {self.drafter.model.attached.vocabulary} tokens and the model {vocabulary}: "
                "draft with a model of the same tokenizer."
            )
        self.answers = min(plan.answers, memory.num_rows)
        self.most = most_guesses(memory, plan.most, self.answers, parse_size(plan.bytes))
        self.made = self.right = 0

    def allowed(self, answers: int) -> int:
        """Guesses per answer while so many are under way."""
        return self.most if answers <= self.answers else 0

    def guess(self, id: str, log: TokenLog, token: int, most: int) -> list[int]:
        return self.drafter.guess(id, log, token, most)[:most] if most else []


def guess_bytes(memory: Memory, guesses: int) -> int:
    """Device bytes that an answer's mark may hold beside its row while so many guesses are in it."""
    geometry, room = memory.geometry, ROOM + guesses
    if not memory.is_bounded:
        return 0
    return sum(
        mark_bytes(layer, cascade, geometry.dtype, room, 1) for layer, cascade in zip(geometry.layers, memory.cascades)
    )


def most_guesses(memory: Memory, wanted: int, answers: int, limit: int) -> int:
    """The most guesses, up to `wanted`, for which the marks of `answers` answers fit into `limit` bytes."""
    return next((n for n in range(wanted, 0, -1) if answers * guess_bytes(memory, n) <= limit), 0)
