"""A whole comparison: every method under every budget on one stream, what was done before taken from the cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from penstock.compare.baselines import BASELINES, ORACLE, beside
from penstock.compare.parallel import Spec, side_by_side, workers_for
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
    unit: str = "tokens"  # what is counted


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

    def run(
        self, tell: Callable[[Progress], None] = lambda _: None, stop: Callable[[], bool] = lambda: False,
        spec: Spec | None = None, workers: int | None = None,
    ) -> None:  # fmt: skip
        """All passes that are not in the cache; one that fails leaves a row with its error.

        With a `spec`, which says how to load the model again, small models run as many passes side by side as there
        are cores, or `workers`.
        """
        rows = {n: known for n, job in enumerate(self.jobs) if (known := self._known(job)) is not None}
        waiting = [n for n in range(len(self.jobs)) if n not in rows]
        count = (workers or workers_for(self.model, len(waiting), len(self.stream.ids))) if spec is not None else 1
        try:
            if min(count, len(waiting)) > 1:
                assert spec is not None
                self._run_beside(spec, waiting, min(count, len(waiting)), rows, tell, stop)
            else:
                self._run_here(waiting, rows, tell, stop)
            self.ended = "done"
        except Stopped:
            self.ended = "interrupted"
        finally:
            for number in sorted(rows):
                (self.rows if self.jobs[number].method is not None else self.baselines).extend(rows[number])
            self._join()

    def _run_here(self, waiting: Sequence[int], rows: Rows, tell: Callable[[Progress], None],
                  stop: Callable[[], bool]) -> None:  # fmt: skip
        threads = torch.get_num_threads()
        if waiting:
            choose_threads(self.model, self.stream, self.chunk)
        try:
            for number in waiting:

                def tick(found: Pass, number: int = number) -> None:
                    if stop():
                        raise Stopped
                    tell(self._progress(number, found))

                try:
                    found = _Work(self)(self.model, number, tick)
                except Stopped:
                    raise
                except Exception as error:
                    rows[number] = self._failed(number, _sentence(error))
                else:
                    rows[number] = self._rows_of(number, found, torch.get_num_threads())
        finally:
            torch.set_num_threads(threads)

    def _run_beside(
        self, spec: Spec, waiting: Sequence[int], count: int, rows: Rows, tell: Callable[[Progress], None],
        stop: Callable[[], bool],
    ) -> None:  # fmt: skip
        for news in side_by_side(spec, _Work(self), waiting, count, _sentence, stop):
            if news.error is not None:
                rows[news.job] = self._failed(news.job, news.error)
            elif news.ended:
                assert news.found is not None
                rows[news.job] = self._rows_of(news.job, news.found, 1)
            elif news.found is not None:
                tell(self._progress(news.job, news.found))

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

    def _progress(self, number: int, found: Pass) -> Progress:
        job = self.jobs[number]
        return Progress(
            number, len(self.jobs), job.name, job.entries, found.tokens, len(self.stream.ids), found.tokens_per_second,
            len(found.hits), found.recall,
        )  # fmt: skip

    def _failed(self, number: int, error: str) -> list[dict[str, Any]]:
        job = self.jobs[number]
        return [{"memory": job.name, "budget": job.entries or plan.budget, **_EMPTY, "error": error,
                 "budget_given": given} for plan, given in zip(job.plans, job.given)]  # fmt: skip

    def _rows_of(self, number: int, found: Pass, threads: int) -> list[dict[str, Any]]:
        """The rows that a pass gives, kept in the cache."""
        job = self.jobs[number]
        more = {
            "seconds": found.wall,
            "threads": threads if str(self.model.attached.device) == "cpu" else None,
            "grows": job.method is not None and not job.method.needs_budget,
        }
        rows = []
        for plan, given in zip(job.plans, job.given):
            head = {"memory": job.name, "budget": job.entries or plan.budget}
            rows.append(finite({**head, **found.row(plan), **more, "budget_given": given}))
            self.cache.put(self._key(job, plan), rows[-1], {"model": self.model.name, "stream": self.stream.name})
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


Rows = dict[int, list[dict[str, Any]]]  # by the number of the job


class _Work:
    """One job on a model, here or in another process: everything it needs but the model."""

    def __init__(self, comparison: Comparison) -> None:
        self.jobs, self.stream, self.chunk = comparison.jobs, comparison.stream, comparison.chunk

    def __call__(self, model: Model, number: int, tick: Callable[[Pass], None]) -> Pass:
        job, began = self.jobs[number], time.perf_counter()
        if job.method is None:
            found = beside(job.name, model, self.stream, job.plans, tick)
        else:
            found = read(model, job.method, job.entries, self.stream, job.plans, self.chunk, tick)
        found.wall = time.perf_counter() - began
        return found


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
