"""How many threads: the faster choice, found on the stream itself."""

from __future__ import annotations

import pytest

from penstock.cli.threads import Threads


def simulate(times: dict[int, float], steps: int, most: int = 2) -> tuple[Threads, list[int], float]:
    """Run steps that take `times[threads]`; gives the chooser, the threads of each step, and the time of all."""
    now = [0.0]
    threads = Threads(most, lambda count: None, lambda: now[0])
    used = []
    for _ in range(steps):
        used.append(threads.count)
        now[0] += times[threads.count]
        threads.note(times[threads.count])
    return threads, used, now[0]


@pytest.mark.parametrize(("times", "best"), [({1: 0.025, 2: 0.6}, 1), ({1: 0.009, 2: 0.005}, 2), ({1: 5.0, 2: 2.9}, 2)])
def test_the_faster_choice_is_used(times: dict[int, float], best: int) -> None:
    _, used, _ = simulate(times, 12)
    assert used[-1] == best
    assert used.count(3 - best) <= 4


def test_trials_cost_little() -> None:
    for times in ({1: 0.025, 2: 0.6}, {1: 0.009, 2: 0.005}, {1: 5.0, 2: 2.9}):
        _, used, total = simulate(times, 10_000)
        assert total < 1.05 * 10_000 * min(times.values())
        assert len(set(used[100:])) == 2  # it is looked at again


def test_a_machine_that_becomes_busy_is_noticed() -> None:
    now, threads = [0.0], None
    threads = Threads(2, lambda count: None, lambda: now[0])
    for step in range(3000):
        took = {1: 0.02, 2: 0.01 if step < 500 else 0.5}[threads.count]
        now[0] += took
        threads.note(took)
    assert threads.count == 1


def test_one_core_is_left_alone() -> None:
    threads, used, _ = simulate({1: 1.0}, 20, most=1)
    assert set(used) == {1}
    threads.restore()
