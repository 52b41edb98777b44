"""What a session was given and has not read yet: pieces of its stream and questions, in the order in which they came.

Every byte that is accepted is at one place: held back by the encoder, waiting here, read, or dropped by the lag policy.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf

from penstock.core import Phase
from penstock.engine.answer import Answer
from penstock.engine.lag import Lag
from penstock.errors import MemoryStateError
from penstock.models.sampling import Sampling

_THINNINGS = 3  # how often `coarsen` halves the same piece


@dataclass
class Piece:
    """Tokens of a stream or of a question."""

    tokens: list[int]
    nbytes: int
    arrived: float
    phase: Phase = Phase.INGEST
    opens_turn: bool = False
    done: int = 0  # tokens read
    thinned: int = 0  # times it was spared


@dataclass
class Question:
    """An answer begins here."""

    answer: Answer
    sampling: Sampling
    has_turn: bool
    arrived: float

    @property
    def deadline(self) -> float:
        return self.answer.deadline


class Inbox:
    """The queue of one session.  Not locked: the engine does that."""

    def __init__(self, rule: Lag) -> None:
        self.rule = rule
        self.items: deque[Piece | Question] = deque()
        self.questions: deque[Question] = deque()  # those among the items
        self.counters: Counter[str] = Counter()
        self.accepted = self.read = self.dropped = self.held = self.waiting = 0  # bytes
        self.held_since = 0.0
        self.tokens = 0  # waiting, of the stream and of questions
        self._thinned_at = -inf

    def __len__(self) -> int:
        return len(self.items)

    @property
    def pending(self) -> int:
        """Bytes that are accepted and not read."""
        return self.waiting + self.held

    @property
    def head(self) -> Piece | Question | None:
        return self.items[0] if self.items else None

    def put(
        self, tokens: Sequence[int], accepted: int, held: int, now: float, phase: Phase = Phase.INGEST,
        opens_turn: bool = False,
    ) -> None:  # fmt: skip
        """Bytes came; tokens were settled by them, and the encoder now holds back `held` bytes at most."""
        before = self.held + accepted
        since = self.held_since if self.held else now
        self.accepted += accepted
        if not tokens and held:
            self.held, self.held_since = before, since
            return
        self.held, self.held_since = min(held, before), now
        settled = before - self.held
        if tokens:
            self.items.append(Piece(list(tokens), settled, since, phase, opens_turn))
            self.waiting += settled
            self.tokens += len(tokens)
        else:
            self.read += settled  # bytes that are no token

    def ask(self, question: Question) -> None:
        """An answer is to begin behind all that came so far."""
        self.items.append(question)
        self.questions.append(question)

    def begin(self) -> Question:
        """Take the question at the head."""
        question = self.items.popleft()
        assert isinstance(question, Question)
        self.questions.popleft()
        return question

    def deadline(self) -> float:
        """When the oldest work is due: by the lag budget, or for the answer behind it."""
        oldest = next((p.arrived for p in self.items if isinstance(p, Piece)), inf)
        return min([oldest + self.rule.budget_ms / 1e3, *(q.deadline for q in self.questions)])

    def drop_held(self) -> None:
        """The encoder has forgotten what it held back."""
        self.dropped += self.held
        self.held = 0

    def next(self, most: int) -> tuple[list[int], Phase]:
        """The next tokens of one phase, at most so many, up to the next question or the beginning of a turn."""
        out: list[int] = []
        phase = Phase.INGEST
        for piece in self.items:
            if isinstance(piece, Question) or len(out) == most:
                break
            if out and (piece.phase is not phase or piece.opens_turn):
                break
            phase = piece.phase
            out += piece.tokens[piece.done : piece.done + most - len(out)]
        return out, phase

    def available(self, most: int) -> int:
        """How many tokens `next` would give."""
        return len(self.next(most)[0])

    def take(self, count: int) -> None:
        """So many tokens were read."""
        self.tokens -= count
        while count:
            piece = self.items[0]
            assert isinstance(piece, Piece)
            step = min(count, len(piece.tokens) - piece.done)
            piece.done += step
            count -= step
            if piece.done == len(piece.tokens):
                self.items.popleft()
                self.waiting -= piece.nbytes
                self.read += piece.nbytes

    def lag_ms(self, now: float) -> float:
        """Milliseconds since the oldest input that is not read came."""
        oldest = next((p.arrived for p in self.items if isinstance(p, Piece)), None)
        oldest = self.held_since if oldest is None and self.held else oldest
        return 0.0 if oldest is None else max(0.0, (now - oldest) * 1e3)

    def is_late(self, now: float, more: int = 0) -> bool:
        """Whether the session is over its lag budget; text that is held back waits for its writer, not for us."""
        oldest = next((p.arrived for p in self.items if isinstance(p, Piece)), now)
        return self.rule.is_over((now - oldest) * 1e3, self.waiting + more)

    def relieve(self, now: float) -> int:
        """Leave out what the policy says while the session is late; returns how many bytes."""
        if self.rule.policy == "drop-oldest":
            return self._drop_oldest(now)
        return self._coarsen(now) if self.rule.policy == "coarsen" else 0

    def _spare(self) -> Iterator[Piece]:
        """What may be left out: pieces of the stream of which nothing is read."""
        return (p for p in self.items if isinstance(p, Piece) and p.phase is Phase.INGEST and not p.done)

    def _drop_oldest(self, now: float) -> int:
        nbytes = 0
        while self.is_late(now) and (piece := next(self._spare(), None)) is not None:
            nbytes += self._drop([piece])
        return nbytes

    def _coarsen(self, now: float) -> int:
        if not self.is_late(now) or (now - self._thinned_at) * 1e3 < min(self.rule.budget_ms, 1e3):
            return 0
        spare = [p for p in self._spare() if p.thinned < _THINNINGS]
        if len(spare) < 2:
            return 0
        least = min(p.thinned for p in spare)
        spare = [p for p in spare if p.thinned == least]
        for piece in spare[::2]:
            piece.thinned += 1
        self._thinned_at = now
        self.counters["coarsened"] += len(spare[1::2])
        return self._drop(spare[1::2])

    def _drop(self, gone: list[Piece]) -> int:
        ids = {id(p) for p in gone}
        self.items = deque(p for p in self.items if id(p) not in ids)
        nbytes = sum(p.nbytes for p in gone)
        self.waiting -= nbytes
        self.dropped += nbytes
        self.tokens -= sum(len(p.tokens) for p in gone)
        return nbytes

    def empty(self) -> list[Question]:
        """Drop everything; returns the questions that will not be answered."""
        questions = list(self.questions)
        self.questions.clear()
        self.dropped += self.waiting
        self.waiting = self.tokens = 0
        self.items.clear()
        self.drop_held()
        return questions

    def cut(self, tokens: int) -> None:
        """Keep only so many of the tokens that wait; no question does."""
        while self.tokens > tokens:
            piece = self.items[-1]
            assert isinstance(piece, Piece)
            over = min(self.tokens - tokens, len(piece.tokens) - piece.done)
            del piece.tokens[len(piece.tokens) - over :]
            self.tokens -= over
            if len(piece.tokens) == piece.done:
                self.items.pop()
                self.waiting -= piece.nbytes
                self.dropped += piece.nbytes

    def copy(self) -> Inbox:
        """An independent queue with the same input waiting (questions are not copied)."""
        other = Inbox(self.rule)
        other.items = deque(replace(p, tokens=list(p.tokens)) for p in self.items if isinstance(p, Piece))
        other.waiting, other.held, other.held_since = self.waiting, self.held, self.held_since
        other.accepted, other.tokens = self.waiting + self.held, self.tokens
        return other

    def check(self) -> None:
        """Raise MemoryStateError if a byte or a token is not where it should be."""
        pieces = [p for p in self.items if isinstance(p, Piece)]
        if self.waiting != sum(p.nbytes for p in pieces) or self.tokens != sum(len(p.tokens) - p.done for p in pieces):
            raise MemoryStateError("the input that waits does not add up: report this with the steps that led here.")
        if self.accepted != self.read + self.dropped + self.waiting + self.held:
            raise MemoryStateError(
                f"{self.accepted} bytes were accepted, {self.read} read, {self.dropped} dropped, {self.waiting} wait "
                f"and {self.held} are held back, which does not add up: report this with the steps that led here."
            )
