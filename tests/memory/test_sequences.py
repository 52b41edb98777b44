"""Any sequence of what can be done to a memory leaves it as if it had just read what its rows remember.

The model is a list of tokens per row: a step appends, truncate and rollback cut, a copy copies, a reset empties.  After
each step the answers must equal those of the naive memory that is fed the row's list from the start.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from safetensors.torch import load as read
from safetensors.torch import save as write

from penstock.errors import NotRewindable
from penstock.memory import Cascade, Everything, Sinks, Window

from .stack import Stack, difference, tokens

ROWS = 3
ROOM = 12  # evictions that a mark may hold
LONGEST = 90  # tokens of a row: the naive form reads them all again at each step

rows = st.integers(0, ROWS - 1)


@dataclass
class Life:
    """What a row should remember."""

    log: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)  # the open ones, as returned
    broken: bool = False


class Sequences(RuleBasedStateMachine):
    @initialize(
        cascade=st.sampled_from(
            [
                Cascade((Sinks(2), Window(5)), "clamped"),
                Cascade((Sinks(1), Window(3), Window(4)), "contiguous"),
                Cascade((Window(6),)),
                Cascade((Everything(),)),
            ]
        ),
        own=st.sampled_from([None, 2, 4]),
        encoding=st.sampled_from(["half", "alibi"]),
    )
    def begin(self, cascade: Cascade, own: int | None, encoding: str) -> None:
        self.stack = Stack(encoding, (None, own), width=4, kv_heads=2, heads=2)
        self.cascade, self.count = cascade, 0
        self.memory = self.stack.memory(cascade, ROWS)
        self.lives = [Life() for _ in range(ROWS)]

    def naive(self, log: list[int], newest: int) -> object:
        return self.stack.feed(self.stack.memory(self.cascade, naive=True), log)[:, -newest:]

    def new(self, count: int) -> list[int]:
        self.count += 1
        return tokens(count, self.count)

    @rule(counts=st.dictionaries(rows, st.sampled_from([1, 1, 1, 2, 3, 5, 8, 13]), min_size=1))
    def step(self, counts: dict[int, int]) -> None:
        packed = {row: self.new(n) for row, n in counts.items() if not self.lives[row].broken}
        packed = {row: fed for row, fed in packed.items() if len(self.lives[row].log) + len(fed) <= LONGEST}
        if not packed:
            return
        try:
            got = self.stack.step(self.memory, packed)
        except NotRewindable:  # a mark is full: nothing happened
            assert any(self.lives[row].marks for row in packed)
            return
        for row, fed in packed.items():
            self.lives[row].log += fed
            assert difference(got[row], self.naive(self.lives[row].log, len(fed))) < 2e-6  # type: ignore[arg-type]

    @rule(row=rows, count=st.integers(1, 9), layer=st.integers(0, 1))
    def fail(self, row: int, count: int, layer: int) -> None:
        if self.lives[row].broken:
            return
        try:
            self.stack.step(self.memory, {row: self.new(count)}, fail_at=layer)
        except NotRewindable:
            return
        except RuntimeError:
            self.lives[row].broken = True

    @rule(row=rows)
    def mark(self, row: int) -> None:
        if not self.lives[row].broken:
            self.lives[row].marks.append(self.memory.mark(row, ROOM))

    @precondition(lambda self: any(life.marks for life in self.lives))
    @rule(row=rows, which=st.integers(0, 9))
    def rollback(self, row: int, which: int) -> None:
        """Never refused."""
        life = self.lives[row]
        if life.marks:
            index = which % len(life.marks)
            self.memory.rollback(life.marks[index], row)
            del life.log[life.marks[index] :], life.marks[index + 1 :]
            life.broken = False

    @precondition(lambda self: any(life.marks for life in self.lives))
    @rule(row=rows, which=st.integers(0, 9))
    def commit(self, row: int, which: int) -> None:
        life = self.lives[row]
        if life.marks:
            index = which % len(life.marks)
            self.memory.commit(life.marks[index], row)
            del life.marks[index:]

    @rule(row=rows, back=st.integers(0, 12))
    def truncate(self, row: int, back: int) -> None:
        """Exact, or refused and without effect."""
        life = self.lives[row]
        length = max(0, len(life.log) - back)
        try:
            self.memory.truncate(length, row)
        except NotRewindable:
            return
        del life.log[length:]
        life.marks = [m for m in life.marks if m <= length]
        life.broken = False

    @rule(row=rows, to=rows)
    def copy(self, row: int, to: int) -> None:
        if not self.lives[row].broken:
            self.memory.copy_row(row, self.memory, to)
            self.lives[to] = Life(list(self.lives[row].log))

    @rule(row=rows, to=rows)
    def save_and_load(self, row: int, to: int) -> None:
        if not self.lives[row].broken:
            self.memory.load_row(read(write(self.memory.save_row(row))), len(self.lives[row].log), to)
            self.lives[to] = Life(list(self.lives[row].log))

    @rule(row=rows)
    def reset(self, row: int) -> None:
        self.memory.reset(row)
        self.lives[row] = Life()

    @rule()
    def account(self) -> None:
        assert [self.memory.length(row) for row in range(ROWS)] == [len(life.log) for life in self.lives]
        assert (self.memory.budget_bytes is None) == (not self.memory.is_bounded)
        if self.memory.is_bounded:
            assert self.memory.nbytes == self.memory.budget_bytes


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=100, stateful_step_count=40)
