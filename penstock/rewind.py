"""The ways back of a session: to an open mark, exactly, or to any length that its memory can still return to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from penstock.core import Phase
from penstock.errors import NotRewindable

if TYPE_CHECKING:
    from penstock.session import Session


@dataclass
class Mark:
    """A point to which the session can return exactly while the mark is open."""

    length: int
    state: dict[str, Any]


@dataclass
class Marks:
    """The open marks of a session, oldest first."""

    open: list[Mark] = field(default_factory=list)

    def index(self, mark: Mark) -> int:
        """Where a mark stands; raises NotRewindable if it is closed.  Marks are told apart by identity."""
        for index, known in enumerate(self.open):
            if known is mark:
                return index
        raise NotRewindable("this mark is closed: marks close when they are committed or truncated away.")

    def at(self, length: int) -> Mark | None:
        """The oldest mark at this length."""
        return next((mark for mark in self.open if mark.length == length), None)

    def keep(self, most: int) -> None:
        """Close the marks behind this length."""
        self.open = [mark for mark in self.open if mark.length <= most]


def mark(session: Session, max_new: int) -> Mark:
    """`Session.mark`."""
    length = session._memory.mark(session.row, max_new)
    encoder = session.encoder.state_dict() if session.encoder is not None and session._has_own else None
    state = {"encoder": encoder, "logits": session._logits, "turn": (session._in_answer, session._turns_from)}
    state |= {"spans": session.spans.state_dict(), "seer": session.seer.state_dict()}
    session.marks.open.append(Mark(length, state))
    return session.marks.open[-1]


def commit(session: Session, mark: Mark) -> None:
    """`Session.commit`."""
    index = session.marks.index(mark)
    if all(m.length != mark.length for m in session.marks.open[:index]):  # else the memory needs its mark for those
        session._memory.commit(mark.length, session.row)
    del session.marks.open[index:]


def return_to(session: Session, mark: Mark) -> None:
    """To the state in which a mark was opened; the marks stay as they are."""
    session._memory.rollback(mark.length, session.row)
    session.log.truncate(mark.length)
    if session.encoder is not None and mark.state["encoder"] is not None:
        session.encoder.load_state_dict(mark.state["encoder"])
    session._logits = mark.state["logits"]
    session._in_answer, session._turns_from = mark.state["turn"]
    session.spans.load_state_dict(mark.state["spans"])
    session.seer.load_state_dict(mark.state["seer"])


def take_back(session: Session, length: int) -> None:
    """`Session.truncate`, whoever speaks."""
    if not 0 <= length <= session.tokens:
        raise NotRewindable(f"cannot truncate a stream of {session.tokens} tokens to {length}.")
    mark = session.marks.at(length)
    if mark is not None and length < session.tokens:
        return_to(session, mark)
        session.marks.keep(length)
    elif length == 0 < session.tokens:
        session.clear()
    elif length < session.tokens:
        _cut(session, length)
    if session._has_own:
        session.drop_held()


def _cut(session: Session, length: int) -> None:
    """Truncate where no mark is: the last token that stays is read again, for its logits."""
    last = session.log.slice(length - 1, length)
    if not last or session.tokens - length + 1 > session.log.rewindable:
        raise NotRewindable(f"the log keeps too few tokens to return to {length}: resume a snapshot instead.")
    session.seer.check_cut(length, last[0])
    session._memory.truncate(length - 1, session.row)
    session.log.truncate(length - 1)
    session.spans.truncate(length)
    session.seer.cut(length - 1)
    session.marks.keep(length - 1)
    if session._turns_from is not None and length <= session._turns_from:
        session._in_answer, session._turns_from = False, None
    measure, session.measure, session._logits = session.measure, False, None
    try:
        session._step(last, Phase.ANSWER)
    finally:
        session.measure = measure
