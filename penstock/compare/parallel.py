"""Passes side by side: one process and one core each, for small models whose steps do not gain from more threads.

    parent   hands out job numbers, hears progress and results, notices a process that died
    worker   loads the model again, runs passes on one thread until there are none left

Ctrl-C is the parent's: workers do not hear it and are told to stop by an event.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from penstock.compare.run import Pass, Stopped
from penstock.models.load import Model, load

_SMALL = 256 << 20  # bytes of weights that may be loaded several times
_MUCH = 60_000  # tokens that are worth starting processes for
_MOST = 4  # processes that nobody asked for
_EVERY = 0.2  # seconds between two words of a worker

Work = Callable[[Model, int, Callable[[Pass], None]], Pass]  # (model, job number, tick) -> what the job measured


@dataclass(frozen=True)
class Spec:
    """How a worker loads the model."""

    name: str | None
    dtype: str | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class News:
    """What a worker says: progress, or the end of a job as a result or a sentence."""

    worker: int
    job: int
    found: Pass | None = None
    error: str | None = None
    ended: bool = False


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_for(model: Model, jobs: int, tokens: int) -> int:
    """How many passes to run at once when nobody says: several for small models on a processor with much to do."""
    weights = sum(p.numel() * p.element_size() for p in model.attached.hf.parameters())
    if str(model.attached.device) != "cpu" or weights > _SMALL or jobs * tokens < _MUCH:
        return 1
    return max(1, min(jobs, cores(), _MOST))


def side_by_side(
    spec: Spec, work: Work, jobs: Sequence[int], count: int, sentence: Callable[[Exception], str],
    stop: Callable[[], bool],
) -> Iterator[News]:  # fmt: skip
    """Run the jobs in `count` processes; yields news.  Raises Stopped when `stop` says so.

    `work` and `sentence` are sent to the processes, so they must be picklable.
    """
    context = multiprocessing.get_context("spawn")
    tasks, news, halt = context.Queue(), context.Queue(), context.Event()
    for job in [*jobs, *[None] * count]:
        tasks.put(job)
    workers: list[Any] = [
        context.Process(target=_work, args=(number, spec, work, sentence, tasks, news, halt), daemon=True)
        for number in range(count)
    ]
    busy: dict[int, int] = {}  # worker -> its job
    left = set(jobs)
    try:
        for worker in workers:
            worker.start()
        while left:
            if stop():
                raise Stopped
            try:
                found: News = news.get(timeout=_EVERY)
            except queue.Empty:
                yield from _lost(workers, busy, left)
                continue
            busy[found.worker] = found.job
            if found.ended:
                left.discard(found.job)
                del busy[found.worker]
            yield found
    finally:
        halt.set()
        for worker in workers:
            worker.join(timeout=2.0 if left else 10.0)
            if worker.is_alive():
                worker.terminate()


def _lost(workers: Sequence[Any], busy: dict[int, int], left: set[int]) -> Iterator[News]:
    """The jobs of processes that died; all that is left when nobody is alive."""
    dead = [number for number, worker in enumerate(workers) if not worker.is_alive()]
    gone = [busy.pop(number) for number in dead if number in busy]
    if len(dead) == len(workers):
        gone = sorted(left)
    for job in gone:
        left.discard(job)
        yield News(-1, job, error="its process died: give it more memory, or run with --jobs 1.", ended=True)


def _work(
    number: int, spec: Spec, work: Work, sentence: Callable[[Exception], str], tasks: Any, news: Any, halt: Any
) -> None:  # fmt: skip
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    last = 0.0
    parent = os.getppid()

    def tick(found: Pass) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _EVERY:
            if halt.is_set() or os.getppid() != parent:
                raise Stopped
            last = now
            news.put(News(number, job, found.moment()))

    model: Model | None = None
    while (job := tasks.get()) is not None and not halt.is_set():
        news.put(News(number, job))
        try:
            model = model or load(spec.name, dtype=spec.dtype, device=spec.device)
            news.put(News(number, job, work(model, job, tick), ended=True))
        except (Stopped, KeyboardInterrupt):
            break
        except Exception as error:
            news.put(News(number, job, error=sentence(error), ended=True))
    if halt.is_set():
        with contextlib.suppress(OSError, ValueError):
            news.cancel_join_thread()
