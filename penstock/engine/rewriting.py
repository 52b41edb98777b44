"""Input that may still be rewritten: search results that are refined, a transcript that is corrected.

    draft = session.draft()              # from here on, what is appended is not final
    draft.append("first page\\n")         # read at once, like any input
    draft.rewrite("second thoughts\\n")   # replaces the whole draft: the longest common prefix of tokens stays read
    draft.end()                          # now it is final
    answer = session.ask("And?")         # refused before: nothing is sampled while the input may change

What a session has read after `end` is, token by token, what it would have read of the last version alone
(arXiv:2604.16395).  The memory goes back to the common prefix where it can do so exactly; where entries were evicted
since, it goes back to where the draft began, for which a fork is kept, and reads again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock.engine.records import Appended
from penstock.errors import NotRewindable, UsageError

if TYPE_CHECKING:
    from penstock.engine.session import EngineSession


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two lists begin with alike."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))


class Draft:
    """The input of a session that is not final.  Made by `EngineSession.draft`; one at a time."""

    def __init__(self, session: EngineSession) -> None:
        if session.inbox.rule.policy not in ("wait", "refuse"):
            raise UsageError(
                f"session {session.id} leaves out input when it is late ({session.inbox.rule.policy}): open it with "
                "the lag policy wait or refuse."
            )
        if not session.drained(0.0 if session.engine.is_running and not session.has_work else None):
            raise UsageError(f"session {session.id} is still reading: begin a draft when it has.")
        self.session = session
        self.first = session.tokens  # the draft begins here
        self.ids: list[int] = []  # its tokens, read or waiting
        self.kept = self.invalidated = 0  # tokens of all rewrites that stayed read, and that were read in vain
        self._encoder = None if session.core.encoder is None else session.core.encoder.copy()
        self._origin = session.fork() if self.first else None
        session.drafted = self

    def append(self, data: str | bytes | Sequence[int]) -> Appended:
        """More of the draft, as EngineSession.append."""
        self._check()
        return self.session.append(data)

    def rewrite(self, data: str | bytes | Sequence[int]) -> int:
        """The whole draft is now `data`; returns how many tokens that had been read must be read again or are gone."""
        session = self.session
        with session.text_lock, session.engine.between_steps():
            self._check()
            if not isinstance(data, (str, bytes, bytearray, memoryview)):
                session.core._check_tokens(data)
            engine, inbox, old = session.engine, session.inbox, session.core.encoder
            session.core.encoder = None if self._encoder is None else self._encoder.copy()
            parts = list(session._encoded(data))
            new, encoder = [t for ids, _ in parts for t in ids], session.core.encoder
            size, held = sum(taken for _, taken in parts), session._held()
            session.core.encoder = old
            same, read = common_prefix(self.ids, new), session.core.tokens - self.first
            lost = max(0, read - same)
            with engine.lock:
                inbox.drop_held()
                if lost:
                    same = self._go_back(same)
                inbox.cut(self.first + same - session.core.tokens)
                session.core.encoder = encoder
                inbox.put(new[same:], size, held, engine.clock.now())
                engine.has_work(session)
            self.ids = new
            self.kept += min(same, read)
            lost = max(0, read - same)
            self.invalidated += lost
            return lost

    def _go_back(self, same: int) -> int:
        """Leave the first `same` tokens of the draft in the memory, or none; returns how many."""
        session = self.session
        session.inbox.cut(0)
        session.engine.seat(session)
        try:
            session.core.take_back(self.first + same)
            return same
        except NotRewindable:
            if self._origin is None:
                session.core.take_back(0)
            else:
                session.engine.restore(session, self._origin)
            return 0

    def end(self) -> None:
        """The draft is final and questions may be asked; text that is held back waits, as always, for what follows."""
        session = self.session
        with session.text_lock:
            self._check()
            session.drafted = None
            if self._origin is not None:
                self._origin.close()

    def _check(self) -> None:
        self.session._check_open()
        if self.session.drafted is not self:
            raise UsageError(f"this draft of session {self.session.id} has ended: begin another one.")
