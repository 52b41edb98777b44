"""A whole comparison: every method under every budget on one stream, what was done before taken from the cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from penstock.compare.baselines import BASELINES, ORACLE, beside
from penstock.compare.questions import Plan
from penstock.compare.results import Cache, code_version, finite
from penstock.compare.run import Pass, Stopped, read
from penstock.compare.stream import Stream
from penstock.core import Budget
from penstock.errors import PenstockError
from penstock.methods import Method
from penstock.methods.base import entries_for
from penstock.models.load import Model
from penstock.models.support import check_supported
from penstock.session import Session


@dataclass(frozen=True)
class Job:
    """One pass: a method under a budget, or a baseline.  What does not depend on the budget serves all plans."""

    name: str
    method: Method | None  # None: a baseline
    entries: int | None  # None: grows
    plans: tuple[Plan, ...]
    given: tuple[str, ...]  # the budgets as they were written, one per plan


@dataclass(frozen=True)
class Progress:
    """A moment of a comparison."""

    job: int
    jobs: int
    memory: str
    budget: int | None
    tokens: int
    total: int
    tokens_per_second: float
    asked: int
    recall: float | None


@dataclass
class Comparison:
    """Checked when made: a method that cannot work under a budget is refused before any work."""

    model: Model
    methods: Sequence[Method]
    budgets: Sequence[Budget]
    stream: Stream
    plans: Sequence[Plan]  # one per budget
    chunk: int = 64
    cache: Cache = field(default_factory=Cache)
    rows: list[dict[str, Any]] = field(default_factory=list)
    baselines: list[dict[str, Any]] = field(default_factory=list)
    ended: str | None = None  # done, interrupted

    def __post_init__(self) -> None:
        self.jobs = [Job(name, None, None, tuple(self.plans), tuple(map(str, self.budgets)))
                     for name in BASELINES if self.stream.facts]  # fmt: skip
        for method in self.methods:
            if not method.needs_budget:
                check(self.model, method, None)
                self.jobs.append(Job(str(method), method, None, tuple(self.plans), tuple(map(str, self.budgets))))
                continue
            for budget, plan in zip(self.budgets, self.plans):
                entries = check(self.model, method, budget)
                self.jobs.append(Job(str(method), method, entries, (plan,), (str(budget),)))

    def run(self, tell: Callable[[Progress], None] = lambda _: None, stop: Callable[[], bool] = lambda: False) -> None:
        """All passes that are not in the cache; one that fails leaves a row with its error."""
        threads = torch.get_num_threads()
        chosen = False
        try:
            for number, job in enumerate(self.jobs):
                rows = self._known(job)
                if rows is None:
                    if not chosen:
                        choose_threads(self.model, self.stream, self.chunk)
                        chosen = True
                    rows = self._made(job, number, tell, stop)
                (self.rows if job.method is not None else self.baselines).extend(rows)
            self.ended = "done"
        except Stopped:
            self.ended = "interrupted"
        finally:
            torch.set_num_threads(threads)
            self._join()

    # -- one job ------------------------------------------------------------------------------------------------

    def _key(self, job: Job, plan: Plan) -> dict[str, Any]:
        attached = self.model.attached
        return {
            "model": self.model.fingerprint,
            "dtype": str(attached.geometry.dtype),
            "device": str(attached.device),
            "memory": job.name,
            "entries": job.entries,
            "stream": self.stream.digest,
            "plan": plan.digest,
            "chunk": self.chunk,
            "code": code_version(job.method),
        }

    def _known(self, job: Job) -> list[dict[str, Any]] | None:
        rows = [self.cache.get(self._key(job, plan)) for plan in job.plans]
        found = [row for row in rows if row is not None]
        return found if len(found) == len(rows) else None

    def _made(
        self, job: Job, number: int, tell: Callable[[Progress], None], stop: Callable[[], bool]
    ) -> list[dict[str, Any]]:
        total = len(self.stream.ids)

        def tick(found: Pass) -> None:
            if stop():
                raise Stopped
            speed = found.tokens_per_second
            tell(Progress(number, len(self.jobs), job.name, job.entries, found.tokens, total, speed, len(found.hits),
                          found.recall))  # fmt: skip

        began = time.perf_counter()
        heads = [{"memory": job.name, "budget": job.entries or plan.budget} for plan in job.plans]
        try:
            if job.method is None:
                found = beside(job.name, self.model, self.stream, job.plans, tick)
            else:
                found = read(self.model, job.method, job.entries, self.stream, job.plans, self.chunk, tick)
        except (Stopped, KeyboardInterrupt):
            raise
        except Exception as error:
            return [{**head, **_EMPTY, "error": _sentence(error)} for head in heads]
        more = {
            "seconds": time.perf_counter() - began,
            "threads": torch.get_num_threads() if str(self.model.attached.device) == "cpu" else None,
            "grows": job.method is not None and not job.method.needs_budget,
        }
        rows = []
        for head, plan, given in zip(heads, job.plans, job.given):
            rows.append(finite({**head, **found.row(plan), **more, "budget_given": given}))
            about = {"model": self.model.name, "stream": self.stream.name}
            self.cache.put(self._key(job, plan), rows[-1], about)
        return rows

    def _join(self) -> None:
        """Beside each memory what the baselines reach on the same questions."""
        for row in self.rows:
            for each in self.baselines:
                same = [b["from"] for b in each["recall"]] == [b["from"] for b in row["recall"]]
                if same and each["budget_given"] == row.get("budget_given"):
                    row["oracle" if each["memory"] == ORACLE else "text_search"] = each["recall"]


_EMPTY: dict[str, Any] = {
    "recall": [],
    "nll_mean": None,
    "bytes": {"device": None, "ram": None, "disk": None},
    "step_ms": {"p50": None, "p99": None, "slope_per_million": None},
    "ingest_tokens_per_second": None,
    "first_token_ms": None,
    "tokens": 0,
    "questions": 0,
}


def _sentence(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, PenstockError) else f"unexpected {type(error).__name__}: {first}"


def check(model: Model, method: Method, budget: Budget | None) -> int | None:
    """The entries of a method under a budget; raises BudgetError, CompositionError or UnsupportedModel."""
    geometry = model.attached.geometry
    check_supported(geometry, method)
    entries = None if budget is None else entries_for(method, geometry, budget)
    check_supported(geometry, method, entries)
    method.cascades(geometry, entries)
    return entries


def choose_threads(model: Model, stream: Stream, chunk: int, setter: Callable[[int], None] | None = None) -> None:
    """Run on all threads or on one, whichever reads the stream's beginning faster: small steps on a busy machine wait
    longer for each other than they compute."""
    most = torch.get_num_threads()
    if str(model.attached.device) != "cpu" or most == 1:
        return
    seconds = {}
    for count in (most, 1):
        (setter or torch.set_num_threads)(count)
        session = Session(model, "streaming-llm", 256, chunk=chunk, path="eager")
        session.ingest(stream.ids[:chunk])
        began = time.perf_counter()
        session.ingest(stream.ids[: 4 * chunk])
        seconds[count] = time.perf_counter() - began
    (setter or torch.set_num_threads)(min(seconds, key=lambda count: seconds[count]))
