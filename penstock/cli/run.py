"""penstock run: read a text that may never end, in constant memory; ask, save, draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import penstock
from penstock import Session
from penstock.cli import plot
from penstock.cli.interrupts import Interrupts
from penstock.cli.lanes import Lane
from penstock.cli.options import DEFAULT_MEMORY, TOUR_PLOT, RunOptions, can_plot, check_writable
from penstock.cli.output import ClosedOutput, Output, say
from penstock.cli.reading import Reading
from penstock.cli.summary import ResidentSet, lanes_table, run_table, summary
from penstock.cli.views import Ticker, view_for
from penstock.errors import MissingExtra, PenstockError
from penstock.io import TextSource, open_text
from penstock.snapshot import resume

_COMPARED = ("window", "dense")


def run(options: RunOptions) -> int | None:
    """Read a text that may never end."""
    out = Output(options.json)
    source = None if options.only_asks else open_text(options.input or "world:library", options.seed)
    with _waiting(out, "loading the model"):
        session = _open(options)
    return Run(options, out, session, source).run()


def _open(options: RunOptions) -> Session:
    settings: dict[str, Any] = {"measure": True}
    if options.chunk is not None:
        settings["chunk"] = options.chunk
    if options.resume is not None:
        return resume(
            options.resume, options.model, memory=options.memory, budget=options.budget, dtype=options.dtype,
            device=options.device, run_path=options.path, **settings,
        )  # fmt: skip
    return penstock.open(
        options.model, options.memory or DEFAULT_MEMORY, options.budget, dtype=options.dtype, device=options.device,
        path=options.path, **settings,
    )  # fmt: skip


@contextmanager
def _waiting(out: Output, what: str) -> Iterator[None]:
    """A sign of life on a terminal."""
    if not out.is_terminal:
        yield
        return
    from rich.console import Console

    with Console().status(f"{what} ..."):
        yield


class Run:
    """One run, from an open session to its summary.

    Whatever ends it (the input, a limit, a signal, a failure, nobody reading), what was asked to be kept is kept:
    the snapshot is written, then the summary, and a failure is told last.
    """

    def __init__(self, options: RunOptions, out: Output, session: Session, source: TextSource | None) -> None:
        self.options, self.out, self.session = options, out, session
        self.interrupts = Interrupts()
        self.lanes = [Lane(session)]
        if options.is_tour:
            budget = session.budget
            self.lanes += [Lane(self._beside(name, budget), compared=True) for name in _COMPARED]
        self.resident = ResidentSet()
        self.reading = Reading(source, self.lanes, options.limit, self.interrupts) if source else None
        self.failure: PenstockError | None = None
        self.is_closed = False
        self.answer: str | None = None

    def _beside(self, memory: str, budget: int | None) -> Session:
        return Session(self.session.model, memory, budget, chunk=self.session.chunk, path="eager", measure=True)

    def run(self) -> int | None:
        """Everything in order."""
        with self.interrupts:
            self._guarded(self._read)
            if self.reading and self.session.tokens == 0 and self.failure:
                raise self.failure  # nothing was read: there is nothing to keep or to tell
            facts = summary(self.options, self.reading, self.lanes, self.resident)
            if self.options.ask is not None and not self.interrupts.terminated:
                self.interrupts.next_phase()
                self._guarded(self._ask)
            self.interrupts.next_phase()
            saved = self.options.save is not None and self._guarded(self._save)
            drawn = self._guarded(self._draw) if self._picture else False
        if self.reading and self.reading.threads:
            self.reading.threads.restore()
        facts["question"], facts["answer"] = self.options.ask, self.answer
        facts["saved"] = str(self.options.save) if saved else None
        facts["plot"] = str(self._picture) if drawn else None
        self._guarded(lambda: self._tell(facts))
        if self.failure is not None:
            raise self.failure
        if self.is_closed:
            raise ClosedOutput
        return None

    def _guarded(self, work: Any) -> bool:
        """Do it unless nobody reads any more; keep the first failure for the end."""
        try:
            work()
        except ClosedOutput:
            self.is_closed = True
        except PenstockError as error:
            self.failure = self.failure or error
        else:
            return True
        return False

    # -- the parts ----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        if self.reading is None:
            return
        with view_for(self.out) as view:
            ticker = Ticker(view, self.reading, self.resident)
            for _ in self.reading.run():
                ticker.tick()

    def _ask(self) -> None:
        if self.failure is not None or self.is_closed:
            return
        assert self.options.ask is not None
        if not self.out.as_json:
            self.out.write(f"> {visible(self.options.ask)}\n")
        self.answer = ""
        pieces = self.session.reply(self.options.ask, max_new=self.options.max_new, seed=self.options.seed)
        try:
            for piece in pieces:
                self.answer += piece
                if not self.out.as_json:
                    self.out.write(visible(piece) if self.out.is_terminal else piece)
                if self.interrupts.flagged:
                    break
        finally:
            pieces.close()  # type: ignore[attr-defined]
        if not self.out.as_json:
            self.out.write("\n")

    def _save(self) -> None:
        assert self.options.save is not None
        self.session.save(self.options.save)

    @property
    def _picture(self) -> Path | None:
        if self.reading is None or self.reading.tokens == 0:
            return None
        if self.options.plot is None and self.options.is_tour:
            try:
                check_writable("the plot", TOUR_PLOT)
            except PenstockError:
                return None
            return TOUR_PLOT if can_plot() else None
        return self.options.plot

    def _draw(self) -> None:
        assert self.reading is not None
        assert self._picture is not None
        plot.draw(self._picture, self.lanes, self.reading.source.name)

    def _tell(self, facts: dict[str, Any]) -> None:
        for note in facts["notes"]:
            say(f"note: {note}")
        if self.is_closed:
            return
        if self.out.as_json:
            self.out.document(facts)
            return
        if facts["ended"] == "interrupted":
            self.out.write("interrupted\n")
        self.out.show(run_table(facts))
        if len(self.lanes) > 1:
            self.out.show("", lanes_table(self.lanes))
            for lane in self.lanes:
                if lane.stopped:
                    self.out.write(f"{lane.name} was stopped at {lane.session.tokens:,} tokens: {lane.stopped}.\n")
            if not can_plot():
                self.out.write(f"no picture: {MissingExtra('it', 'plot')}\n")
        for what in ("plot", "saved"):
            if facts[what]:
                self.out.write(f"{what}: {facts[what]}\n")


def visible(text: str) -> str:
    """Text that cannot steer a terminal: control characters other than line ends and tabs become U+FFFD."""
    return "".join(char if (char >= " " and char != "\x7f") or char in "\n\t" else "\ufffd" for char in text)
