"""One session of the server: what it is told is on the disk before it is acknowledged, and survives the process.

    told ──► tally ──► journal (synced) ──► acknowledged
                          └──► stream: read when its turn comes

The order of the journal is the order of the stream.  A session of an earlier run is cold: its length is known at once,
from the last record; its stream is made when it is needed, from the snapshot and by replaying the records behind it.
Replaying says every answer again, token by token, whatever the model would say now: in other company, on another
machine it may round otherwise.  A question whose answer a crash has cut is answered anew.

All methods wait (for the disk, for a lock) and may be called from any thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from penstock.engine.records import Pace
from penstock.errors import PenstockError
from penstock.serve.asked import Asked, Deliver, Finished
from penstock.serve.folder import Folder
from penstock.serve.journal import Record
from penstock.serve.refusal import Refusal
from penstock.serve.tally import Tally

PATIENCE = 60.0  # seconds that truncate waits for pending input
COMPACT = 8 << 20  # bytes of journal after which a snapshot is worth its cost


class Hosted:
    """A session with an owner, a journal (unless nothing is kept) and, when it is awake, a stream."""

    def __init__(
        self, engine: Any, id: str, owner: str, created: float, tally: Tally, folder: Folder | None = None
    ) -> None:  # fmt: skip
        self.engine, self.id, self.owner, self.created = engine, id, owner, created
        self.tally, self.folder = tally, folder
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.stream: Any = None
        self.is_live = False  # the stream has got every record
        self.is_waking = False
        self.is_taken = False  # by a Realtime connection
        self.is_closed = False
        self.on_closed: Callable[[], object] = lambda: None  # in whatever thread closes it
        self.backlog: deque[Record] = deque()
        self.asked: dict[int, Asked] = {}  # by the number of the question's record
        self.answers: dict[int, list[int]] = {}  # token ids of those to questions in the backlog
        self.failure: BaseException | None = None
        self.answered = 0  # answers that were counted here
        self._number = 0
        self._replayed_since = time.monotonic()
        self.ingested = 0  # while there is no stream

    # -- what a session is told ---------------------------------------------------------------------------------

    def append(self, data: bytes) -> int:
        """Text of the stream; returns how many tokens it settled.  Durable when this returns."""
        if not data:
            return 0
        with self.lock:
            self._check()
            before = self.tally.state_dict()
            self.tally.append(data)
            record = self._write("append", {}, data, before)
            if self.is_live:
                self._guarded(lambda: self.stream.append(data))
            else:
                self.backlog.append(record)
            return self.tally.tokens - int(before["tokens"])

    def ask(self, question: str | None, raw: bool, sampling: dict[str, Any], deliver: Deliver) -> Asked:
        """Put a question; the pieces of the answer, then Finished or an error, go to `deliver`, from another thread."""
        with self.lock:
            self._check_settled()
            if question is None and self.tally.tokens + self.tally.held == 0:
                raise Refusal("there is nothing to go on from: append some text, or ask a question.", param="question")
            before = self.tally.state_dict()
            self.tally.ask(question, raw)
            head = {"question": question, "raw": raw, "sampling": sampling}
            record = self._write("ask", head, b"", before)
            asked = self.asked[record.number] = Asked(deliver)
            self._guarded(lambda: asked.take(self.stream.ask(question, raw=raw, **sampling)))
        threading.Thread(target=self.pump, args=(record.number, asked), name=f"ask-{self.id}", daemon=True).start()
        return asked

    def ask_aside(
        self, question: str | None, raw: bool, sampling: dict[str, Any], deliver: Deliver, ids: Sequence[int] = ()
    ) -> Asked:  # fmt: skip
        """The same on a fork that is dropped, behind token `ids`: the stream remembers nothing of it."""
        with self.lock:
            self._check_settled()
            branch = self.stream.fork()
        asked = Asked(deliver)

        def run() -> None:
            try:
                if ids:
                    branch.append(ids)
                asked.take(branch.ask(question, raw=raw, **sampling))
                finished = asked.read()
            except BaseException as error:
                asked.tell(error)
            else:
                asked.tell(finished)
            finally:
                branch.close()

        threading.Thread(target=run, name=f"ask-{self.id}-aside", daemon=True).start()
        return asked

    def pump(self, number: int, asked: Asked) -> None:
        """Read an answer to its end, make it durable, then say so."""
        event: Finished | BaseException
        try:
            event = asked.read()
        except BaseException as error:
            event = error
        with self.lock:
            try:
                if isinstance(event, Finished) and not self.is_closed:
                    state, said = self.tally.state_dict(), asked.answer.said
                    self.tally.answer(len(said))
                    self._write("answer", {"of": number, "said": said}, b"", state)
                    self.answered += 1
                    event = replace(event, kept=len(said), answers=self.answered)
            except PenstockError as error:
                event = error
            self.asked.pop(number, None)
            self.changed.notify_all()
        asked.tell(event)

    def truncate(self, tokens: int) -> None:
        """Keep the first `tokens`; waits until pending input is read."""
        with self.lock:
            self._check_settled()
            self._wait_read()
            if tokens > self.tally.tokens:
                raise Refusal(f"the stream has {self.tally.tokens} tokens: truncate to that or fewer.", param="tokens")
            self.stream.truncate(tokens)
            before = self.tally.state_dict()
            self.tally.truncate(tokens)
            try:
                self._write("truncate", {"to": tokens}, b"", before)
            except PenstockError as error:  # the stream is shorter than what the disk says: nobody may go on with it
                self.failure = error
                raise

    def fork(self, other: Hosted, folder: Folder | None) -> None:
        """Make `other` a session with the same past."""
        stream = self.stream.fork(other.id)
        other.stream, other.is_live, other.folder, other._number = stream, True, folder, self._number

    def save(self) -> int:
        """Write a snapshot, with the input that waits, so that a restart has nothing to replay; returns its bytes."""
        with self.lock:
            if self.folder is None:
                raise Refusal("this server keeps nothing: start it with --state DIR.", 409, code="no_state")
            self._check_settled()
            path = self.folder.next_snapshot()
            if path != self.folder.snapshot:
                self.stream.save(path)
                self.folder.use(path, self.tally.state_dict(), self.stream.status().tokens_ingested)
            return path.stat().st_size

    @property
    def is_long(self) -> bool:
        """Whether the journal has become worth a snapshot."""
        return self.folder is not None and self.folder.journal.bytes >= COMPACT

    def compact(self) -> bool:
        """Save if the journal has become long and no answer is under way; True if so."""
        with self.lock:
            if not self.is_long or not self.is_live or self.is_closed or self.asked:
                return False
            self.save()
            return True

    def close(self, delete: bool) -> None:
        """Let go of the stream, and of the files if asked to."""
        with self.lock:
            self.is_closed = True
            if self.stream is not None:
                self.stream.close()
            if self.folder is not None:
                self.folder.journal.close()
                if delete:
                    self.folder.delete()
            self.changed.notify_all()
        self.on_closed()

    # -- checks -------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.is_closed:
            raise Refusal(f"there is no session {self.id}: create one with POST /v1/sessions.", 404)
        if self.failure is not None:
            raise self.failure

    def _check_live(self) -> None:
        self._check()
        if not self.is_live:
            raise Refusal("the session is being restored: try again soon.", 503, code="restoring", retry_after=1)

    def _check_settled(self) -> None:
        self._check_live()
        if self.asked:
            raise Refusal("the session is answering: wait for the end of the answer.", 409, code="answering")

    def _wait_read(self) -> None:
        if not self.stream.drained(PATIENCE):
            raise Refusal(
                "input is still being read: the session can be truncated when bytes_pending is small.", 409,
                code="busy", retry_after=1,
            )  # fmt: skip

    def _write(self, kind: str, head: dict[str, Any], payload: bytes, before: dict[str, Any]) -> Record:
        """Make it durable; on failure the count is as it was."""
        if self.folder is None:
            self._number += 1
            return Record(self._number - 1, kind, head, payload)
        try:
            number = self.folder.journal.write(kind, {**head, "tally": self.tally.state_dict()}, payload)
        except BaseException:
            self.tally.load_state_dict(before)
            raise
        return Record(number, kind, head, payload)

    def _guarded(self, work: Callable[[], Any]) -> None:
        """Hand to the stream what is durable already; a stream that cannot take it stays broken until a restart."""
        try:
            work()
        except BaseException as error:
            self.failure = error
            raise

    # -- report -------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Bytes that were taken and not read yet."""
        waiting = sum(len(record.payload) for record in list(self.backlog))
        stream = self.stream
        return waiting + (self.tally.held if stream is None else stream.status().bytes_pending)

    def document(self) -> dict[str, Any]:
        """The session as the protocol shows it."""
        stream, tally = self.stream, self.tally
        status = None if stream is None else stream.status()
        lag = 0.0 if status is None else status.lag_ms
        if self.backlog:
            lag = max(lag, (time.monotonic() - self._replayed_since) * 1e3)
        return {
            "id": self.id,
            "object": "session",
            "created": int(self.created),
            "tokens": tally.tokens,
            "bytes": tally.bytes,
            "tokens_ingested": self.ingested if status is None else status.tokens_ingested,
            "bytes_pending": self.pending,
            "memory_bytes": 0 if status is None else status.memory_bytes,
            "lag_ms": round(lag, 3),
            "loss": None if status is None else status.loss,
            "seconds": 0.0 if status is None else round(status.seconds, 6),
            "place": "disk"
            if status is None and self.folder is not None
            else "new"
            if status is None
            else str(status.place),
            "answering": len(self.asked),
            "durable": self.folder is not None,
            "error": None if self.failure is None else str(self.failure),
            "pace": asdict(Pace() if status is None else status.pace),
        }
