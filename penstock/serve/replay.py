"""Make the stream of a session of an earlier run: its snapshot, then the records behind it, in order."""

from __future__ import annotations

from penstock.errors import SnapshotError
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
    said, sampling = hosted.answers.pop(record.number, None), record.head["sampling"]
    if said is not None:
        sampling = {"max_new": max(1, len(said)), "said": said}
    asked = Asked(None)
    with hosted.engine.between_steps():
        asked.answer = hosted.stream.ask(record.head["question"], raw=record.head["raw"], **sampling)
        if said == []:
            asked.answer.cancel()  # before it begins: the question stays, unanswered
    if said is None:
        with hosted.lock:
            hosted.asked[record.number] = asked
        hosted.pump(record.number, asked)
        return
    asked.read()
    if list(asked.answer.said) != said:
        raise SnapshotError(f"an answer of session {hosted.id} cannot be put back: serve with the libraries of before.")
