"""Make the stream of a session of an earlier run: its snapshot, then the records behind it, in order."""

from __future__ import annotations

from penstock.serve.asked import Asked
from penstock.serve.hosted import COMPACT, Hosted
from penstock.serve.journal import Record
from penstock.serve.saying import replay_parts


def wake(hosted: Hosted) -> None:
    """Make the stream: the snapshot, then the records behind it, in order."""
    try:
        snapshot = hosted.folder.snapshot if hosted.folder is not None else None
        hosted.stream = hosted.engine.open(hosted.id) if snapshot is None else hosted.engine.resume(snapshot, hosted.id)
        while True:
            with hosted.lock:
                if not hosted.backlog or hosted.is_closed:
                    hosted.is_live = not hosted.is_closed
                    hosted.changed.notify_all()
                    return
                record = hosted.backlog.popleft()
            _replay(hosted, record)
    except BaseException as error:
        with hosted.lock:
            hosted.failure = error
            hosted.changed.notify_all()


def _replay(hosted: Hosted, record: Record) -> None:
    if record.kind == "append":
        if hosted.stream.status().bytes_pending > COMPACT:
            hosted.stream.drained(None)
        hosted.stream.append(record.payload)
    elif record.kind == "truncate":
        hosted.stream.drained(None)
        hosted.stream.truncate(record.head["to"])
        replay_parts(hosted, record.head)
    elif record.kind == "say":
        replay_parts(hosted, record.head)
    elif record.kind == "ask":
        _replay_ask(hosted, record)


def _replay_ask(hosted: Hosted, record: Record) -> None:
    known, sampling = hosted.answers.pop(record.number, None), record.head["sampling"]
    is_cut = known is not None and known["finish"] == "cancelled"
    if known is not None and is_cut:
        sampling = {**sampling, "max_new": max(1, known["kept"]), "stop": ()}
    asked = Asked(None)
    with hosted.engine.between_steps():
        asked.answer = hosted.stream.ask(record.head["question"], raw=record.head["raw"], **sampling)
        if known is not None and is_cut and not known["kept"]:
            asked.answer.cancel()  # before it begins: the question stays, unanswered
        before = hosted.stream.status().tokens
    if known is None:
        with hosted.lock:
            hosted.asked[record.number] = asked
        hosted.pump(record.number, asked, before)
        return
    asked.read()
    kept = hosted.stream.status().tokens - before
    if kept != known["kept"]:
        with hosted.lock:
            hosted.differing += 1
            hosted.tally.answer(kept - known["kept"])
