"""The bounded queue: nothing grows, nothing is lost without being counted."""

from __future__ import annotations

import threading

import pytest

from penstock.io.bounded import BoundedQueue, Closed


def test_policies() -> None:
    oldest: BoundedQueue[int] = BoundedQueue(2, "drop-oldest")
    newest: BoundedQueue[int] = BoundedQueue(2, "drop-newest")
    for queue in (oldest, newest):
        for i in range(5):
            queue.put(i)
        queue.put(9, always=True)
        queue.end()
    assert [oldest.take() for _ in range(3)] == [3, 4, 9]
    assert [newest.take() for _ in range(3)] == [0, 1, 9]
    for queue in (oldest, newest):
        with pytest.raises(Closed):
            queue.take()
        assert (queue.dropped_count, queue.taken_count) == (3, 3)
        queue.check()


def test_what_must_not_be_lost_is_never_dropped() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1, "drop-oldest")
    queue.put(1, always=True)
    queue.put(2)  # full of what cannot be dropped: the new one goes
    queue.end(ValueError("late"))
    assert queue.take() == 1
    with pytest.raises(ValueError, match="late"):
        queue.take()
    queue.check()


def test_a_full_queue_makes_the_writer_wait_until_it_is_abandoned() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2)
    done = []

    def write() -> None:
        try:
            for i in range(100):
                queue.put(i)
        except Closed:
            done.append("closed")

    thread = threading.Thread(target=write)
    thread.start()
    assert [queue.take() for _ in range(10)] == list(range(10))
    with pytest.raises(TimeoutError):
        BoundedQueue[int](1).take(timeout=0.01)
    queue.abandon()
    thread.join(5)
    assert done == ["closed"]
    assert queue.longest == 2
    queue.check()
