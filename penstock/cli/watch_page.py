"""penstock watch --serve: the watcher in the browser console."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from penstock.cli.output import say
from penstock.cli.summary import ResidentSet
from penstock.cli.watch_views import stats
from penstock.errors import UsageError
from penstock.watch import Event, Watch
from penstock.watch.opening import Sight

if TYPE_CHECKING:
    from penstock.serve.watched import Watched


EVERY = 0.1  # seconds between two looks at the numbers


class Page:
    """Puts what a watcher does where the server finds it."""

    def __init__(self, watcher: Watch, watched: Watched, address: str) -> None:
        self.watcher, self.watched, self.address = watcher, watched, address
        self._next = 0.0
        emit = watcher.record.emit

        def both(event: Event) -> None:
            watched.event(event.document())
            emit(event)

        watcher.record.emit = both

    def tick(self, resident: ResidentSet) -> None:
        """How things stand, ten times a second at most; a picture is made when a page asks for it."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY
        watcher, session = self.watcher, self.watcher.reader
        now, spoken, frame = stats(watcher, resident), watcher.voice.now, watcher.newest
        facts: dict[str, Any] = {
            **now, "t": round(watcher.t, 3), "tokens": session.tokens, "tokens_ingested": session.tokens,
            "seconds": round(watcher.counts.busy, 4), "memory_bytes": now["memory_bytes"]["now"],
            "budget_bytes": now["memory_bytes"]["budget"], "answering": int(spoken is not None),
            "answers": watcher.counts.answers, "announcements": watcher.counts.announcements, "ended": watcher.ended,
            "speaking": None if spoken is None else {"question": spoken.question.text, "text": spoken.text},
        }  # fmt: skip
        self.watched.show(facts, None if frame is None else (frame.index, frame.image))


@contextmanager
def served(watcher: Watch, sight: Sight, port: int) -> Iterator[Page]:
    """A page as long as the block lasts; UsageError when the port is taken."""
    from penstock.serve.run import listen
    from penstock.serve.watched import Watched
    from penstock.serve.watching import WatchServer

    watched = Watched("watch", sight.name, watcher.ask)
    try:
        listener = listen("127.0.0.1", port)
    except UsageError:
        raise UsageError(f"port {port} is taken on this machine: give --port another number, or 0 for any.") from None
    with WatchServer(watched, listener) as server:
        say(f"{watcher.pipeline.source.name} at {server.address}/, Ctrl-C ends it")
        yield Page(watcher, watched, server.address)
