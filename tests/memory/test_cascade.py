"""Compositions are checked when they are made, with a sentence that contains the fix."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from penstock.errors import BudgetError, CompositionError
from penstock.memory import Cascade, Everything, Sinks, Window


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cascade(()), "needs a segment: start with Window"),
        (lambda: Cascade((Window(4), Sinks(2))), "put Sinks first"),
        (lambda: Cascade((Sinks(1), Sinks(2), Window(3))), "put Sinks first"),
        (lambda: Cascade((Everything(), Window(4))), "nothing can come after it"),
        (lambda: Cascade((Sinks(4),)), r"add Window\(size\)"),
        (lambda: Cascade((Window(4),), "absolute"), "choose one of stream, clamped, contiguous"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make: Callable[[], Cascade], words: str) -> None:
    with pytest.raises(CompositionError, match=words):
        make()


def test_sizes_are_checked() -> None:
    with pytest.raises(BudgetError, match="at least 1 entry, got 0"):
        Window(0)
    with pytest.raises(BudgetError, match="0 or more, got -1"):
        Sinks(-1)


def test_sizes_of_a_cascade() -> None:
    cascade = Cascade((Sinks(3), Window(5), Window(2)))
    assert (cascade.sinks, cascade.windows, cascade.entries, cascade.is_bounded) == (3, (5, 2), 10, True)
    grows = Cascade((Everything(),))
    assert (grows.sinks, grows.windows, grows.entries, grows.is_bounded) == (0, (), None, False)
    assert Cascade((Window(5),)).sinks == 0


def test_a_layer_with_its_own_window_keeps_its_newest_entries() -> None:
    """min(w, budget) entries, at stream positions: the model was trained that way and has no sinks there."""
    cascade = Cascade((Sinks(3), Window(5)), "clamped")
    assert cascade.limited_to(4) == Cascade((Window(4),), "stream")
    assert cascade.limited_to(99) == Cascade((Window(8),), "stream")
    assert Cascade((Everything(),)).limited_to(99) == Cascade((Window(99),), "stream")


def test_cascades_are_values() -> None:
    assert Cascade((Sinks(3), Window(5))) == Cascade((Sinks(3), Window(5)), "stream")
    assert len({Cascade((Window(5),)), Cascade((Window(5),)), Cascade((Window(6),))}) == 2
