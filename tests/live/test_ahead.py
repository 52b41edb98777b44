"""Chunks inferred ahead: no jump at the switch, no stall while inference is faster than the overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest

from penstock.errors import UsageError
from penstock.live.ahead import Ahead

STEP = 1.0


@dataclass
class Later:
    """A policy that walks on in a line from the state that it is given, ready after `ticks`."""

    world: World
    state: float
    ready: int

    def done(self) -> bool:
        return self.world.now >= self.ready

    def result(self) -> Sequence[float]:
        return [self.state + STEP * (i + 1) for i in range(8)]


@dataclass
class World:
    """A point that goes where actions say."""

    latency: int
    now: int = 0

    def begin(self, observation: int, state: float) -> Later:
        assert observation == self.now
        return Later(self, state, self.now + self.latency)


def walked(latency: int, overlap: int, ticks: int = 60, every: int = 1, naive: bool = False) -> tuple[list[float], int]:
    world = World(latency)

    def rolled(state: float, actions: Sequence[float]) -> float:
        return state if naive or not actions else actions[-1]

    policy = Ahead(world.begin, rolled, overlap, every)
    path, state = [], 0.0
    for world.now in range(ticks):
        action = policy.tick(world.now, state)
        if action is not None:
            state = action
            path.append(action)
    return path, policy.stalls


def test_without_overlap_and_latency_it_is_the_synchronous_policy() -> None:
    path, stalls = walked(0, 0)
    assert path == [STEP * (i + 1) for i in range(60)]
    assert stalls == 0


@pytest.mark.parametrize("latency", range(7))
def test_it_stalls_only_where_inference_is_slower_than_the_overlap(latency: int) -> None:
    path, stalls = walked(latency, 4)
    assert (stalls > 0) == (latency > 4)
    assert path == [STEP * (i + 1) for i in range(len(path))]  # the line goes on: no jump at any switch


def test_without_rolling_forward_there_is_a_jump_at_every_switch() -> None:
    path, _ = walked(3, 4, naive=True)
    jumps = [b - a for a, b in pairwise(path) if b - a != STEP]
    assert len(jumps) >= 5
    assert set(jumps) == {STEP * (1 - 4)}


def test_every_second_action_is_twice_as_fast() -> None:
    path, stalls = walked(2, 2, every=2)
    assert stalls == 0
    assert path[-1] > 1.7 * len(path)


def test_overlaps_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="leave no room for an overlap of 9"):
        walked(0, 9)
    with pytest.raises(UsageError, match="an overlap is 0"):
        walked(0, -1)
