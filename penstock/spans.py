"""Spans of a stream that can be pruned: subtasks that are done, whose conclusion stands behind them.

    session.begin_span()                 the subtasks of the current task begin
    ...                                  feed, reply, decode
    session.end_span()                   they are done; the oldest done span beyond `stack` is pruned
    session.prune(start, stop)           the same, by hand

To prune is to go back to where the span began and to read again what stands behind it, from the log: afterwards the
session is, token by token, one that never read the span.  Indices, positions and the log shrink with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from penstock.core import Phase
from penstock.errors import CompositionError, NotRewindable, UsageError

if TYPE_CHECKING:
    from penstock.session import Session


@dataclass
class Spans:
    """Where spans begin and end, by index in the stream.  `stack` done ones stay in the memory; None: all of them."""

    stack: int | None = None
    begun: list[int] = field(default_factory=list)  # starts, outermost first
    done: list[tuple[int, int]] = field(default_factory=list)  # in the order in which they ended

    def begin(self, at: int) -> None:
        """A span begins inside the ones that are open."""
        self.begun.append(at)

    def end(self, at: int) -> None:
        """The innermost open span is done; done ones inside it become part of it."""
        if not self.begun:
            raise UsageError("no span is open: call begin_span() where the subtasks begin.")
        start = self.begun.pop()
        self.done = [(a, b) for a, b in self.done if b <= start]
        if start < at:
            self.done.append((start, at))

    def excess(self) -> tuple[int, int] | None:
        """The oldest done span, if there are more than the stack holds."""
        return self.done[0] if self.stack is not None and len(self.done) > self.stack else None

    def cut(self, start: int, stop: int) -> None:
        """Tokens [start, stop) are gone: everything behind them moves."""

        def moved(at: int) -> int:
            return at - (stop - start) if at >= stop else min(at, start)

        self.begun = [moved(at) for at in self.begun]
        self.done = [(moved(a), moved(b)) for a, b in self.done if moved(a) < moved(b)]

    def truncate(self, length: int) -> None:
        """Only `length` tokens are left: spans behind them are forgotten, one cut in two is open again."""
        ended = [a for a, b in self.done if a < length < b]
        self.begun = sorted([at for at in self.begun if at <= length] + ended)
        self.done = [(a, b) for a, b in self.done if b <= length]

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"begun": list(self.begun), "done": [list(span) for span in self.done]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of state_dict."""
        self.begun = [int(at) for at in state["begun"]]
        self.done = [(int(a), int(b)) for a, b in state["done"]]

    def copy(self) -> Spans:
        """Independent, with the same content."""
        return Spans(self.stack, list(self.begun), list(self.done))


def prune(session: Session, start: int, stop: int) -> int:
    """Take tokens [start, stop) out of the session; returns how many were read again.

    Raises NotRewindable, and changes nothing, where the memory or the log no longer has what that needs.
    """
    length, log = session.tokens, session.log
    if not 0 <= start <= stop <= length:
        raise UsageError(f"a stream of {length} tokens has no span {start} to {stop}: give indices within it.")
    if not all(cascade.is_simple for cascade in session._memory.cascades):
        raise CompositionError(f"{session.method.name} cannot read a part of the stream again: use memory=tim.")
    if start == stop:
        return 0
    behind = log.slice(stop, length)
    first = start if behind or not start else start - 1  # the last token that stays is read again, for its logits
    if length - first > log.rewindable:
        raise NotRewindable(
            f"the log can take back {log.rewindable} tokens and the span begins {length - first} back: prune earlier."
        )
    pruned, again = log.slice(start, stop), log.slice(first, start) + behind
    session._memory.truncate(first, session.row)
    log.truncate(first)
    session._pruned(first, start, stop)
    measure, session.measure = session.measure, False
    try:
        for i in range(0, len(again), session.chunk):
            session._step(again[i : i + session.chunk], Phase.INGEST)
    finally:
        session.measure = measure
    session._tell_evicted(range(start, stop), pruned)
    return len(again)


def end(session: Session) -> list[range]:
    """The innermost span of the session is done; returns the spans that were pruned, by index at that time.

    A span that can no longer be taken out exactly, because the memory let go of entries in front of it, stays as text
    like any other.
    """
    session.spans.end(session.tokens)
    out: list[range] = []
    while (span := session.spans.excess()) is not None:
        try:
            prune(session, *span)
            out.append(range(*span))
        except NotRewindable:
            session.spans.done.remove(span)
    return out
