"""The meter: bounded, and right."""

from __future__ import annotations

import math
import statistics
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.meter import BINS, RESERVOIR, Bins, Meter, percentile


@given(st.lists(st.tuples(st.integers(0, 300_000), st.floats(-10, 10)), min_size=1, max_size=50))
def test_bins_lose_nothing_when_they_join(values: list[tuple[int, float]]) -> None:
    bins = Bins()
    for position, value in values:
        bins.add(position, value)
    assert len(bins.count) == len(bins.total) == BINS
    assert sum(bins.count) == len(values)
    assert sum(bins.total) == pytest.approx(sum(value for _, value in values), abs=1e-9)
    for start, stop, mean in bins.means():
        inside = [value for position, value in values if start <= position < stop]
        assert stop - start == bins.width
        assert mean == pytest.approx(statistics.fmean(inside), abs=1e-9)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30), st.floats(0, 1))
def test_percentiles_are_those_of_numpy(values: list[float], q: float) -> None:
    import numpy

    assert percentile(values, q) == pytest.approx(float(numpy.quantile(values, q)), abs=1e-9)


def test_an_empty_meter_knows_nothing() -> None:
    meter = Meter()
    assert meter.nll_mean is None
    assert meter.tokens_per_second == 0.0
    assert math.isnan(meter.step_percentiles()["p50"])


def test_losses_go_where_their_tokens_are() -> None:
    meter = Meter()
    meter.losses(250, [float(i) for i in range(12)])  # across the border at 256
    assert meter.nll.means() == [(0, 256, 2.5), (256, 512, 8.5)]
    assert meter.nll_mean == 5.5
    assert meter.recent_nll == 5.5
    meter.losses(262, [])
    assert meter.predictions == 12


def test_times_and_peaks() -> None:
    meter = Meter()
    for i in range(RESERVOIR + 100):
        meter.step(i, 1, 0.001 if i >= 100 else 1.0, i % 50)
    assert meter.tokens == RESERVOIR + 100
    assert meter.step_percentiles()["p99"] == pytest.approx(1.0)  # the newest steps only
    assert meter.peak_bytes == 49
    assert meter.tokens_per_second == pytest.approx(meter.tokens / meter.seconds)


def test_a_meter_takes_its_space_at_once() -> None:
    """With 500 sessions, bins and times that filled up one by one were a tenth of a megabyte a minute."""
    meter = Meter()

    def size() -> int:
        return sum(map(sys.getsizeof, (meter._times, meter.nll.count, meter.nll.total, meter.step_ms.count)))

    empty = size()
    for i in range(2 * RESERVOIR):
        meter.step(1000 * i, 1, 0.01, 1)
        meter.losses(1000 * i, [1.0])
    assert size() == empty
