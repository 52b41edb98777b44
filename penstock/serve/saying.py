"""Messages in a hosted session: token-exact borders, so that what stands behind one can be taken back and put anew.

say       groups of parts go behind the stream, durable when it returns
rewrite   the stream is cut at a border and groups go behind what is left: both or nothing
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.errors import PenstockError
from penstock.serve.hosted import Hosted
from penstock.serve.realtime.script import Part, Placed, ids_of
from penstock.serve.refusal import Refusal


def say(hosted: Hosted, groups: Sequence[Sequence[Part]], said: str) -> Placed:
    """Put groups behind the stream; `said` is the state of the script behind them."""
    tokenizer = hosted.engine.model.tokenizer
    ids = [ids_of(tokenizer, group) for group in groups]  # not under the lock: it may take long
    with hosted.lock:
        hosted._check_live()
        before = hosted.tally.state_dict()
        placed, first = _count(hosted, ids, groups, said)
        parts = [list(part) for group in groups for part in group]
        hosted._write("say", {"parts": parts, "first": first}, b"", before)
        _feed(hosted, [first, *ids])
        return placed


def rewrite(hosted: Hosted, to: int, expected: int, groups: Sequence[Sequence[Part]], said: str) -> Placed:
    """Cut the stream to `to` tokens, exactly or not at all, and put groups behind it.

    `expected` is how long the caller believes the stream to be: if others wrote meanwhile, nothing is cut.
    """
    tokenizer = hosted.engine.model.tokenizer
    ids = [ids_of(tokenizer, group) for group in groups]
    with hosted.lock:
        hosted._check_settled()
        if hosted.tally.tokens + hosted.tally.held != expected:
            raise Refusal("others wrote into this session: it can be continued, not changed.", 409, code="not_exact")
        hosted._wait_read()
        hosted.stream.truncate(to)
        before = hosted.tally.state_dict()
        hosted.tally.truncate(to)
        placed, first = _count(hosted, ids, groups, said)
        parts = [list(part) for group in groups for part in group]
        try:
            hosted._write("truncate", {"to": to, "parts": parts, "first": first}, b"", before)
        except PenstockError as error:  # the stream is shorter than what the disk says: nobody may go on with it
            hosted.failure = error
            raise
        _feed(hosted, [first, *ids])
        return placed


def _count(
    hosted: Hosted, ids: Sequence[Sequence[int]], groups: Sequence[Sequence[Part]], said: str
) -> tuple[Placed, list[int]]:
    """Where the groups stand, and the ids that begin the stream, if they do."""
    tally = hosted.tally
    size = sum(len(text.encode("utf-8", "replace")) for group in groups for text, special, _ in group if not special)
    is_first = tally.tokens == 0
    first = tally.flushed() if any(ids) else []
    start = 0 if is_first else tally.tokens
    ends = [tally.say(group) for group in ids]
    tally.bytes += size
    tally.said = said
    return Placed(start, ends, hosted.answered), first


def _feed(hosted: Hosted, ids: Sequence[Sequence[int]]) -> None:
    joined = [token for group in ids for token in group]
    if joined:
        hosted._guarded(lambda: hosted.stream.append(joined))


def replay_parts(hosted: Hosted, head: dict[str, Any]) -> None:
    """What a record said, once more."""
    ids = [*head.get("first", ()), *ids_of(hosted.engine.model.tokenizer, head.get("parts", ()))]
    if ids:
        hosted.stream.append(ids)
