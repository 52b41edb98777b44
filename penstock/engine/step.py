"""One step of an engine: order, acquire, run the model once, hand out what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from penstock.core import Phase, Span
from penstock.engine.inbox import Piece, Question
from penstock.engine.passes import gather, passes
from penstock.engine.plan import Limits, acquire
from penstock.engine.policies import Candidate
from penstock.engine.records import Finish, Stepped
from penstock.engine.speaking import Speaking
from penstock.errors import NotRewindable, PenstockError

if TYPE_CHECKING:
    from penstock.engine.engine import Engine
    from penstock.engine.session import EngineSession


@dataclass
class Work:
    """What one session does in a step."""

    session: EngineSession
    tokens: list[int]
    phase: Phase
    guesses: int = 0  # how many of the tokens, the last ones, are

    @property
    def row(self) -> int:
        assert self.session.row is not None
        return self.session.row


def one_step(engine: Engine) -> Stepped:
    """As Engine.step, between steps."""
    started = time.perf_counter()
    now = engine.clock.now()
    with engine.lock:
        sessions = _with_work(engine, now)
        if not sessions:
            return Stepped()
        guesses = engine.guesses.allowed(sum(s.speaking is not None for s in sessions)) if engine.guesses else 0
        ordered = engine.policy.order([s.candidate(engine.quantum, guesses) for s in sessions])
        admitted = engine.policy.admit(ordered, engine.limits.capacity)
        limits = _limits(engine, admitted, now)
        busy = {c.id for c in ordered}
        idle = sorted((s for s in engine.rows.taken if s.id not in busy), key=lambda s: s.served)
        plan = acquire(admitted, [s.candidate(engine.quantum) for s in idle], engine.rows.free, limits)
        for id in plan.demote:
            engine.rows.demote(engine.sessions[id])
        served = [(engine.sessions[id], n) for id, n in plan.serve]
        came = [s.id for s, _ in served if s.kept is not None]
        works = [w for s, n in served if (w := _work(engine, s, n, now)) is not None]
        if engine.batches:
            _gather(engine, works)
        unserved = {s.id for s in sessions} - {s.id for s, _ in served}
    began = time.perf_counter()
    done = []
    for group in passes(works, engine.by_phase):
        done += _run(engine, group, now)
    seconds = time.perf_counter() - began
    out = Stepped(
        served=tuple(s.id for s, _ in served), promoted=tuple(came), demoted=tuple(plan.demote),
        waiting=tuple(sorted(unserved)), seconds=seconds,
    )  # fmt: skip
    if engine.controller is not None:
        answers = sum(w.phase is Phase.ANSWER for w in done)
        engine.controller.settle(len(done) - answers, answers, time.perf_counter() - started)
    with engine.lock:
        now = engine.clock.now()
        turns = {
            w.session.id: (t := w.session.speaking.turn, t.right) for w in done if w.guesses and w.session.speaking
        }
        for session, _ in served:
            _go_on(engine, session, now, out)
        for work in done:
            decodes, id = work.phase is Phase.ANSWER, work.session.id
            (out.decoded if decodes else out.ingested)[id] = len(work.tokens) - work.guesses
            if id in turns and engine.guesses is not None:
                turn, right = turns[id]
                out.decoded[id] += turn.right - right
                engine.guesses.made += work.guesses
                engine.guesses.right += turn.right - right
        engine.tokens_ingested += sum(out.ingested.values())
        engine.tokens_decoded += sum(out.decoded.values())
        engine.steps += bool(done)
        engine.moved = now
    for session, _ in served:
        if session.closes and not session.has_work:
            engine.forget(session)
    return out


def _with_work(engine: Engine, now: float) -> list[EngineSession]:
    """Sessions that want something, after lag policies, deadlines and cancellations; the others leave the list."""
    out = []
    for session in list(engine.busy.values()):
        session.inbox.relieve(now)
        speaking = session.speaking
        if speaking is not None and speaking.finish is None:
            if speaking.answer.is_cancelled:
                speaking.cut(Finish.CANCELLED)
            elif speaking.answer.deadline < now:
                speaking.cut(Finish.DEADLINE)
        for question in session.inbox.questions:
            if question.deadline < now:
                question.answer.end(Finish.DEADLINE, now)
        if session.has_work:
            out.append(session)
        else:
            del engine.busy[session.id]
    return out


def _work(engine: Engine, session: EngineSession, count: int, now: float) -> Work | None:
    """Bring a session into a row and take what it feeds; None when it only goes on with an answer."""
    try:
        if session.row is None:
            engine.rows.promote(session)
        session.served = now
        session.turns += 1
        if session.speaking is not None:
            feed, guesses = session.speaking.feed, list[int]()
            if feed is None:
                return None
            if engine.guesses is not None and count > 1:
                guesses = engine.guesses.guess(session.id, session.core.log, feed, count - 1)
                session.speaking.turn.guess(len(guesses))
            return Work(session, [feed, *guesses], Phase.ANSWER, len(guesses))
        head = session.inbox.head
        if not isinstance(head, Piece):
            return None
        if head.opens_turn and not head.done:
            session.core.turn_opens()
        return Work(session, *session.inbox.next(count))
    except PenstockError as error:
        fail(engine, session, error, now)
        return None


def _limits(engine: Engine, admitted: Sequence[Candidate], now: float) -> Limits:
    """What this step may take: the engine's limits, less reading where answers have been promised a pace."""
    if engine.controller is None:
        return engine.limits
    answers = sum(c.decodes and c.has_row for c in admitted)
    reading = [c for c in admitted if not c.decodes and c.tokens]
    late = max((now - c.arrived for c in reading if c.most), default=0.0)
    waiting = sum(min(c.tokens, engine.limits.chunk) for c in reading)
    return replace(engine.limits, reading=engine.controller.tokens(answers, waiting, engine.limits.tokens, late))


def _gather(engine: Engine, works: Sequence[Work]) -> None:
    """Bring the rows of answers together, so that one batched read serves them."""
    single = {w.row for w in works if w.phase is Phase.ANSWER and len(w.tokens) == 1}
    taken = {s.row: s for s in engine.rows.taken if s.row is not None}
    fixed = {row for row, s in taken.items() if s.speaking is not None and s.speaking.is_pinned}
    for move in gather(single, taken.keys(), fixed, len(engine.rows)):
        engine.rows.move(move.source, move.to)


def _run(engine: Engine, works: list[Work], now: float) -> list[Work]:
    """One pass of the model over all of them; returns those that were done.

    If it fails, each is tried alone, so that a session fails for its own reasons only; one whose row was left half
    written and cannot be put back is lost.
    """
    began = time.perf_counter()
    spans = [Span(w.row, len(w.tokens)) for w in works]
    ends = list(accumulate(span.count for span in spans))
    tokens = [t for w in works for t in w.tokens]
    counts = [len(w.tokens) if engine.measure else 1 + w.guesses for w in works]  # logits of each
    places = torch.tensor(
        [p for n, end in zip(counts, ends) for p in range(end - n, end)], device=engine.model.attached.device
    )
    starts = [w.session.core.tokens for w in works]
    try:
        logits = engine.runner.step(spans, tokens, "all" if engine.measure else places, works[0].phase)
        assert logits is not None
    except Exception as error:  # whatever a model raises must not reach the other sessions
        alive = [w for w, start in zip(works, starts) if _restored(engine, w, start, error, now)]
        if len(works) > 1:
            return [done for w in alive for done in _run(engine, [w], now)]
        for work in alive:
            fail(engine, work.session, error, now)
        return []
    seconds = time.perf_counter() - began
    engine.observe(works, seconds)
    for work, at, mine in zip(works, starts, logits.split(counts)):
        work.session.core.stepped(at, work.tokens, mine, seconds * len(work.tokens) / ends[-1])
        work.session.core._logits = mine[-1].clone()  # its own: a view would keep those of all rows
        if work.guesses and work.session.speaking is not None:
            work.session.speaking.turn.learned(work.tokens[1:], mine[-1 - work.guesses :])
        if work.phase is not Phase.ANSWER:
            with engine.lock:
                work.session.inbox.take(len(work.tokens))
    return works


def _restored(engine: Engine, work: Work, start: int, error: BaseException, now: float) -> bool:
    """Whether a row is as it was before a step that failed."""
    if not engine.memory.rows[work.row].is_broken:
        return True
    try:
        engine.memory.truncate(start, work.row)
    except NotRewindable:
        fail(engine, work.session, error, now)
        return False
    return True


def fail(engine: Engine, session: EngineSession, error: BaseException, now: float) -> None:
    """A session cannot go on: its answers end with the error, its memory is given up."""
    with engine.lock:
        session.error = error
        if session.speaking is not None:
            session.speaking.fail(error, now)
            session.speaking = None
        for question in session.inbox.empty():
            question.answer.end(Finish.ERROR, now, error)
        engine.rows.leave(session)
        engine.busy.pop(session.id, None)


def _go_on(engine: Engine, session: EngineSession, now: float, out: Stepped) -> None:
    """Behind a step: begin the answer that is next, choose tokens, end what is over."""
    if session.error is not None or session.row is None:
        return
    if session.speaking is None and isinstance(session.inbox.head, Question):
        question = session.inbox.begin()
        if question.answer.finish is not None:  # cancelled or too late before it began
            session.core._in_answer = session.core._in_answer or question.has_turn
            out.finished[session.id] = question.answer.finish
            return
        try:
            session.speaking = Speaking(session.core, question)
        except PenstockError as error:
            question.answer.end(Finish.ERROR, now, error)
            out.finished[session.id] = Finish.ERROR
            return
    speaking = session.speaking
    if speaking is not None:
        speaking.advance(now)
        if speaking.is_over:
            assert speaking.finish is not None
            out.finished[session.id] = speaking.finish
            engine.policy.ended(len(speaking.turn.tokens))
            session.speaking = None
