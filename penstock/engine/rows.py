"""Which session is in which row, and the ways between a row and the attic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from penstock.engine.attic import Attic, Kept
from penstock.errors import MemoryStateError
from penstock.memory import Memory

if TYPE_CHECKING:
    from penstock.engine.session import EngineSession


class Rows:
    """The rows of the shared memory and who is in them."""

    def __init__(
        self, memory: Memory, attic: Attic, reads_again: Callable[[int], bool] = lambda tokens: False,
        read_again: Callable[[Sequence[int], int], None] | None = None,
    ) -> None:  # fmt: skip
        self.memory, self.attic = memory, attic
        self._reads_again, self._read_again = reads_again, read_again
        self._owners: list[EngineSession | None] = [None] * memory.num_rows
        self.promotions = self.demotions = self.moves = self.recomputed = 0

    def __len__(self) -> int:
        return len(self._owners)

    @property
    def free(self) -> int:
        return self._owners.count(None)

    @property
    def taken(self) -> list[EngineSession]:
        """Sessions that are in a row, by row."""
        return [s for s in self._owners if s is not None]

    def promote(self, session: EngineSession) -> None:
        """Bring a session into a free row."""
        row = self._owners.index(None)
        if session.kept is not None:
            self.memory.load_row(self.attic.read(session.kept), session.kept.length, row)
            self.attic.drop(session.kept)
            session.kept = None
            self.promotions += 1
        elif session.is_forgotten:
            assert self._read_again is not None
            self._read_again(list(session.core.log.tail), row)
            session.is_forgotten = False
            self.promotions += 1
            self.recomputed += 1
        self._sit(session, row)

    def _sit(self, session: EngineSession, row: int) -> None:
        self._owners[row] = session
        session.row = session.core.row = row
        session.turns = 0

    def move(self, source: int, to: int) -> None:
        """The session in row `source` goes to row `to`; a session that is there takes its place.  No marks are open."""
        memory, mover, other = self.memory, self._owners[source], self._owners[to]
        assert mover is not None
        saved = None
        if other is not None:
            saved = {name: t.clone() for name, t in memory.save_row(to).items()}, memory.length(to)
        memory.copy_row(source, memory, to)
        memory.reset(source)
        if other is not None and saved is not None and saved[1]:
            memory.load_row(*saved, source)
        for owner, row in ((mover, to), (other, source)):
            self._owners[row] = owner
            if owner is not None:
                owner.row = owner.core.row = row
        self.moves += 1

    def demote(self, session: EngineSession) -> None:
        """Take a session out of its row; it must have no open mark."""
        assert session.row is not None
        length = self.memory.length(session.row)
        if length:
            if len(session.core.log.tail) == length and self._reads_again(length):
                session.is_forgotten = True  # its tokens are in the log
            else:
                session.kept = self.attic.put(self.memory.save_row(session.row), length)
            self.demotions += 1
        self._vacate(session)

    def _vacate(self, session: EngineSession) -> None:
        from penstock.engine.session import AWAY

        assert session.row is not None
        self.memory.reset(session.row)
        self._owners[session.row] = None
        session.row, session.core.row = None, AWAY

    def leave(self, session: EngineSession) -> None:
        """A session ends: nothing of it stays."""
        if session.row is not None:
            self._vacate(session)
        if session.kept is not None:
            self.attic.drop(session.kept)
            session.kept = None
        session.is_forgotten = False

    def copy(self, of: EngineSession, to: EngineSession) -> None:
        """The memory of one session for another one too: shared in the attic, copied into a free row, or kept."""
        to.is_forgotten = of.is_forgotten
        if of.kept is not None:
            to.kept = self.attic.share(of.kept)
        elif of.row is not None and self.memory.length(of.row):
            if self.free:
                row = self._owners.index(None)
                self.memory.copy_row(of.row, self.memory, row)
                self._sit(to, row)
            else:
                to.kept = self._twin(of)

    def _twin(self, of: EngineSession) -> Kept:
        """What a row holds, kept for a fork: forks made at the same point share it until they differ."""
        now = of.core.log.digest, self.memory.length(of.row or 0)
        if of.twin is not None and of.twin[0] == now and of.twin[1].owners:
            return self.attic.share(of.twin[1])
        kept = self.attic.put(self.memory.save_row(of.row or 0), now[1])
        of.twin = now, kept
        return kept

    def check(self, sessions: Sequence[EngineSession]) -> None:
        """Raise MemoryStateError unless rows, sessions and the attic agree."""
        for row, owner in enumerate(self._owners):
            length = self.memory.length(row)
            if owner is None:
                fits = length == 0
            else:
                fits = owner.row == owner.core.row == row and owner.kept is None and owner in sessions
                fits = fits and (length == owner.core.tokens or owner.error is not None)
            if not fits:
                raise MemoryStateError(f"row {row} of {length} tokens is not its owner's: report the steps to here.")
        for session in sessions:
            away = session.row is None and session.error is None
            if away and session.is_forgotten and session.core.tokens == len(session.core.log.tail):
                continue
            if away and session.core.tokens != (session.kept.length if session.kept is not None else 0):
                raise MemoryStateError(f"session {session.id} has lost its memory: report the steps to here.")
        self.attic.check([s.kept for s in sessions if s.kept is not None])
