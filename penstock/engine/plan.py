"""The second phase of a step's plan: rows and tokens are acquired in the order that a policy gave.  Pure.

    order      A  B  C  D  E            rows: B, D and the idle Z
    A  takes the row of Z: idle sessions give theirs first, the least recently served before others
    B  has one
    C  takes that of D: behind it in the order, not pinned, its quantum used
    D, E  wait

Decoding sessions take one token each, up to `logits`, and what these leave for guesses; the others share what is left
of `tokens`, at most `chunk` each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.engine.policies import Candidate


@dataclass
class Plan:
    """Who is served with how many tokens, who must give up its row before that, who waits."""

    serve: list[tuple[str, int]] = field(default_factory=list)  # in order
    demote: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Limits:
    """What one step may take."""

    chunk: int = 64  # tokens of one session
    tokens: int = 256  # of all
    logits: int = 256  # sessions that decode
    reading: int | None = None  # tokens of all that only read; None: what answers leave of `tokens`
    capacity: int | None = None  # entries in all rows together; None: no limit beside the rows


def acquire(ordered: Sequence[Candidate], idle: Sequence[Candidate], free: int, limits: Limits) -> Plan:
    """Give out rows and tokens; `idle` are sessions in rows with nothing to do, first to leave first."""
    plan = Plan()
    behind = [c for c in ordered if c.has_row and not c.is_pinned and not c.is_fresh]
    victims = [*behind, *reversed(idle)]  # the next one to leave is the last
    rank = {c.id: i for i, c in enumerate(ordered)}
    held = sum(c.held for c in (*ordered, *idle) if c.has_row)
    decoding = min(limits.logits, sum(c.decodes for c in ordered))
    tokens, logits = max(1, limits.tokens - decoding), limits.logits
    if limits.reading is not None:
        tokens = min(tokens, limits.reading)
    spare = max(0, min(limits.logits, limits.tokens) - decoding)  # for guesses
    gone: set[str] = set()

    def give_up(place: int) -> Candidate | None:
        """The next session to leave its row for the one at `place` of the order."""
        nonlocal held
        if not victims or rank.get(victims[-1].id, len(ordered)) <= place:
            return None  # all that are left come earlier in the order
        last = victims.pop()
        gone.add(last.id)
        plan.demote.append(last.id)
        held -= last.held
        return last

    for place, c in enumerate(ordered):
        extra = min(c.guesses, spare, limits.chunk - 1) if c.decodes else 0
        n = 1 + extra if c.decodes else min(c.tokens, limits.chunk, tokens)
        if c.id in gone or (logits < 1 if c.decodes else n < 1 and c.tokens > 0):
            plan.waiting.append(c.id)
            continue
        grows = n if c.limit is None else min(n, max(0, c.limit - c.held))
        need = grows if c.has_row else grows + c.held
        while limits.capacity is not None and held + need > limits.capacity and give_up(place) is not None:
            free += 1
        is_over = limits.capacity is not None and held + need > limits.capacity
        if is_over and plan.serve:  # never more than there is, but for the first, so that something goes on
            plan.waiting.append(c.id)
            continue
        if not c.has_row:
            if not free and give_up(place) is None:
                plan.waiting.append(c.id)
                continue
            free = max(0, free - 1)
        held += need
        logits -= c.decodes
        tokens -= extra if c.decodes else n
        spare -= extra
        plan.serve.append((c.id, n))
    return plan
