"""The engine: sessions in the rows of one memory, one packed step for all that have something to do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from penstock.core import Budget, Clock, Phase, RealClock, parse_size
from penstock.engine.answer import Answer
from penstock.engine.attic import Attic
from penstock.engine.cadence import Cadence
from penstock.engine.controller import Controller, Targets
from penstock.engine.demotion import WAYS, Costs, Curve, again, measure
from penstock.engine.drafting import Drafting, Guesses
from penstock.engine.inbox import Inbox
from penstock.engine.lag import Lag
from penstock.engine.plan import Limits
from penstock.engine.policies import Policy, policy_of
from penstock.engine.records import EngineStats, Finish
from penstock.engine.report import account, stats_of
from penstock.engine.rows import Rows
from penstock.engine.running import Running
from penstock.engine.session import AWAY, EngineSession
from penstock.engine.step import Work
from penstock.errors import Overloaded, SnapshotError, UnknownName, UsageError
from penstock.memory import Memory, row_bytes
from penstock.methods import Method, parse
from penstock.methods.base import entries_for
from penstock.models.load import Model, load
from penstock.models.paths import Runner
from penstock.models.support import check_supported
from penstock.session import CHUNK, Session, default_budget
from penstock.snapshot import pending_of, read, restore


class Engine(Running):
    """Many sessions on one model; see the package's docstring.

    `rows` sessions are in the memory at once, the others in `ram` (bytes) and then in `folder`.  A step reads at most
    `tokens` of all and `chunk` of one session, and decodes for at most `logits`.  `device` bounds the bytes that the
    rows hold together, for memories that grow.  A session keeps a row it was given for `quantum` steps at least.
    """

    def __init__(
        self, model: Model | str | Path | Any = None, memory: Method | str = "streaming-llm",
        budget: Budget | int | str | None = None, rows: int = 16, ram: int | str = "1GiB",
        folder: str | Path | None = None, policy: str | Policy = "first-come", clock: Clock | None = None, *,
        chunk: int = CHUNK, tokens: int = 256, logits: int = 256, device: int | str | None = None, quantum: int = 8,
        lag: Lag | None = None, path: str = "auto", measure: bool = False, patience: float = 10.0,
        targets: Targets | None = None, draft: Drafting | None = None, demotion: str | Costs = "swap",
    ) -> None:  # fmt: skip
        for name, value in {"rows": rows, "chunk": chunk, "tokens": tokens, "logits": logits}.items():
            if value < 1:
                raise UsageError(f"an engine cannot have {name}={value}: give at least 1.")
        self.model = model if isinstance(model, Model) else load(model)
        self.method, self.chunk, self.measure, self.patience = parse(memory), chunk, measure, patience
        geometry = self.model.attached.geometry
        check_supported(geometry, self.method)
        wanted = default_budget(self.model) if budget is None else Budget.parse(budget)
        self.budget = entries_for(self.method, geometry, wanted)
        check_supported(geometry, self.method, self.budget)
        cascades = self.method.cascades(geometry, self.budget)
        self.memory = Memory(geometry, cascades, rows)
        self.row_nbytes = row_bytes(geometry, cascades) or 0  # 0: grows
        self.row_entries = max(c.entries or 0 for c in cascades) if self.memory.is_bounded else None
        per_entry = sum(layer.entry_bytes(geometry.dtype) for layer in geometry.layers)
        capacity = None if device is None else max(1, parse_size(device) // per_entry)
        self.runner = Runner(self.model.attached, self.memory, path, chunk)
        self.policy, self.clock = policy_of(policy), RealClock() if clock is None else clock
        self.limits = Limits(chunk, tokens, logits, capacity=capacity)
        self.controller = None if targets is None else Controller(targets)
        self.guesses = None if draft is None else Guesses(draft, self.memory, self.model.attached.vocabulary)
        self.by_phase = not all(c.is_simple for c in self.memory.cascades)
        self.batches = self.memory.is_bounded and not self.by_phase and self.runner.now == "eager"  # see passes.py
        self.quantum, self.default_lag = quantum, Lag() if lag is None else lag
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
        self.attic = Attic(parse_size(ram), None if folder is None else Path(folder))
        self.rows = Rows(self.memory, self.attic, self._recomputes, partial(again, self.runner, chunk))
        self.demotion_costs = self._demotion_costs(demotion)
        self.cadence = Cadence()
        self._core()  # what sessions share is made now (the tokenizer's tables: 20 ms), not when the first is opened
        self.sessions: dict[str, EngineSession] = {}
        self.busy: dict[str, EngineSession] = {}  # those that may have work
        self.steps = self.tokens_ingested = self.tokens_decoded = 0
        self.moved = self.clock.now()  # when a step has last ended
        super().__init__()

    def _demotion_costs(self, wanted: str | Costs) -> Costs | None:
        if isinstance(wanted, Costs):
            return wanted
        if wanted not in WAYS:
            raise UnknownName("way of demotion", wanted, WAYS)
        if wanted == "swap" or self.by_phase:
            return None
        if wanted == "recompute":
            return Costs(Curve((0.0, 0.0, 0.0)), Curve((1.0, 0.0, 0.0)))
        return measure(self.runner, self.chunk, through_disk=self.attic.folder)

    def _recomputes(self, tokens: int) -> bool:
        return not self.by_phase and self.demotion_costs is not None and self.demotion_costs.recomputes(tokens)

    @property
    def _engine(self) -> Engine:
        return self

    # -- sessions -----------------------------------------------------------------------------------------------

    def open(self, id: str | None = None, *, lag: Lag | None = None) -> EngineSession:
        """A new session; an id that is taken is refused."""
        return self._enter(id, self._core(), Inbox(lag or self.default_lag))

    def resume(self, path: str | Path, id: str | None = None, *, lag: Lag | None = None) -> EngineSession:
        """A session from a snapshot of an engine or of `Session.save`, with this engine's model, memory and budget."""
        path = Path(path)
        body, tensors = read(path)
        ours = (self.model.fingerprint, self.method, self.budget)
        if (body["model"]["fingerprint"], parse(body["memory"]), body["budget"]) != ours:
            raise SnapshotError(
                f"{path} was saved with {body['model']['name']}, {body['memory']} and budget {body['budget']}, this "
                f"engine has {self.model.name}, {self.method} and {self.budget}: use an engine like that one."
            )
        core = self._core(bool(body["special"]))
        held, length = restore(core, path, body, tensors)
        inbox, now = Inbox(lag or self.default_lag), self.clock.now()
        encoder_holds = 0 if core.encoder is None else core.encoder.pending
        inbox.put(pending_of(tensors), int(body.get("pending_bytes", 0)), 0, now)
        inbox.put([], encoder_holds, encoder_holds, now)
        with self.between_steps(), self.lock:
            session = self._enter(id, core, inbox)
            session.kept = self.attic.put(held, length) if length else None
            self.has_work(session)
        return session

    def branch(self, of: EngineSession, id: str | None) -> EngineSession:
        """A fork: the rows' part is shared or copied between steps."""
        core = self._core()
        of.core.share_past(core)
        session = self._enter(id, core, of.inbox.copy())
        session._in_answer = of._in_answer
        with self.lock:
            self.rows.copy(of, session)
            self.has_work(session)
        return session

    def restore(self, session: EngineSession, origin: EngineSession) -> None:
        """Give a session the past of a fork of it, which stays as it is; between steps."""
        self.rows.leave(session)
        origin.core.share_past(session.core)
        self.rows.copy(origin, session)

    def _core(self, special: bool = False) -> Session:
        return Session(
            self.model, self.method, self.budget, chunk=self.chunk, measure=self.measure, special=special,
            shared=self.runner, row=AWAY,
        )  # fmt: skip

    def _enter(self, id: str | None, core: Session, inbox: Inbox) -> EngineSession:
        with self.lock:
            id = uuid4().hex if id is None else id
            if id in self.sessions:
                raise UsageError(f"there is a session {id} already: close it first, or choose another id.")
            away = len(self.sessions) + 1 - len(self.rows)
            if self.attic.folder is None and away * self.row_nbytes > self.attic.ram:
                raise Overloaded(
                    f"{len(self.sessions)} sessions fill {len(self.rows)} rows and {self.attic.ram} bytes of RAM: "
                    "close some, give more RAM, or a folder."
                )
            session = self.sessions[id] = EngineSession(self, id, core, inbox)
            return session

    def forget(self, session: EngineSession) -> None:
        """Close a session, between steps."""
        with self.lock:
            now = self.clock.now()
            for question in session.inbox.empty():
                question.answer.end(Finish.CANCELLED, now)
            if session.speaking is not None:
                session.speaking.answer.end(Finish.CANCELLED, now)
                session.speaking = None
            if self.guesses is not None:
                self.guesses.drafter.forget(session.id)
            session.is_closed = True
            self.sessions.pop(session.id, None)
            self.busy.pop(session.id, None)
            self.rows.leave(session)

    def seat(self, session: EngineSession) -> None:
        """Give a session a row now, between steps; Overloaded if no other may leave its own."""
        if session.row is not None:
            return
        if not self.rows.free:
            idle = [s for s in self.rows.taken if not s.has_work]
            others = [s for s in self.rows.taken if s.speaking is None or not s.speaking.is_pinned]
            if not (idle or others):
                raise Overloaded("every row is in the middle of an answer: try again in a moment.")
            self.rows.demote(min(idle or others, key=lambda s: s.served))
        self.rows.promote(session)

    def __getitem__(self, id: str) -> EngineSession:
        with self.lock:
            if id not in self.sessions:
                raise UsageError(f"there is no session {id}: open it, or resume it.")
            return self.sessions[id]

    def __contains__(self, id: object) -> bool:
        return id in self.sessions

    @property
    def ids(self) -> list[str]:
        with self.lock:
            return list(self.sessions)

    # -- time ---------------------------------------------------------------------------------------------------

    def has_work(self, session: EngineSession) -> None:
        """Something was queued for a session (the lock is held or nobody else knows it)."""
        if session.has_work and session.id not in self.busy:
            session.waits_since = self.clock.now()
            self.busy[session.id] = session
            with self._news:
                self._news.notify_all()

    def cancel(self, answer: Answer) -> None:
        """End an answer; at once if it has not begun, else where it is, by the next step."""
        with self.lock:
            answer.is_cancelled = True
            if not any(s.speaking is not None and s.speaking.answer is answer for s in self.busy.values()):
                answer.end(Finish.CANCELLED, self.clock.now())

    def close(self) -> None:
        """Stop and close all sessions."""
        self.stop()
        for session in list(self.sessions.values()):
            session.close()
        self.runner.close()

    def __enter__(self) -> Engine:
        return self.run()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- report -------------------------------------------------------------------------------------------------

    def observe(self, works: Sequence[Work], seconds: float) -> None:
        """A pass over these works has taken so many seconds of real time."""
        if self.controller is not None:
            answers = sum(w.phase is Phase.ANSWER for w in works)
            read = sum(len(w.tokens) for w in works if w.phase is not Phase.ANSWER)
            self.controller.observe(read, answers, seconds)

    def check(self) -> dict[str, int]:
        """Account for every byte, of input and of memory; raises MemoryStateError where it does not add up."""
        with self.between_steps(), self.lock:
            return account(self)

    def stats(self) -> EngineStats:
        """Counters of this moment."""
        with self.lock:
            return stats_of(self)
