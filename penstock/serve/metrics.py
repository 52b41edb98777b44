"""What a server tells Prometheus: requests, answers and their cadence, and its sessions as they are now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from penstock.engine.records import EngineStats
from penstock.serve.house import House

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self, house: House) -> None:
        self.registry = CollectorRegistry()
        given: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("penstock_requests", "Requests by route and status.", ["route", "status"], **given)
        self.appended = Counter("penstock_appended_bytes", "Bytes appended to sessions, durable.", **given)
        self.answers = Counter("penstock_answers", "Answers by how they ended.", ["finish"], **given)
        self.tokens = Counter("penstock_tokens", "Tokens of questions and answers.", ["kind"], **given)
        seconds = {"buckets": _SECONDS, **given}
        self.first = Histogram("penstock_first_piece_seconds", "From a question to its first text.", **seconds)
        self.between = Histogram("penstock_between_pieces_seconds", "Between two pieces of one answer.", **seconds)
        self.lines = Gauge("penstock_realtime_connections", "Realtime connections that are open.", **given)
        self.tasks = Gauge("penstock_tasks", "Tasks of the event loop.", **given)
        self.registry.register(_Sessions(house))

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)


class _Sessions:
    """Gauges, read when they are asked for."""

    def __init__(self, house: House) -> None:
        self._house = house

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        found = [hosted.document() for hosted in list(self._house.sessions.values())]
        places = GaugeMetricFamily("penstock_sessions", "Sessions by where their memory is.", labels=["place"])
        for place in ("new", "device", "ram", "disk"):
            places.add_metric([place], sum(session["place"] == place for session in found))
        yield places
        for name, about, value in (
            ("memory_bytes", "Bytes of all memories.", sum(s["memory_bytes"] for s in found)),
            ("pending_bytes", "Bytes taken and not read yet.", sum(s["bytes_pending"] for s in found)),
            ("lag_seconds", "Age of the oldest unread input.", max((s["lag_ms"] for s in found), default=0) * 1e-3),
            ("answering", "Answers under way.", sum(s["answering"] for s in found)),
            ("failed_sessions", "Sessions that a failure has stopped.", sum(s["error"] is not None for s in found)),
            ("lost_sessions", "Folders of sessions that cannot be read.", len(self._house.lost)),
        ):  # fmt: skip
            yield GaugeMetricFamily(f"penstock_{name}", about, value=value)
        yield from _engine(self._house.engine.stats())


def _engine(stats: EngineStats) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
    """Whether it goes on, and how answers come, on the engine's clock."""
    pace = stats.pace
    yield GaugeMetricFamily("penstock_stuck_sessions", "Sessions with work that is not gone on with.", stats.stuck)
    yield GaugeMetricFamily("penstock_still_seconds", "Time with work in which no step has ended.", stats.still)
    yield CounterMetricFamily("penstock_steps", "Steps of the model.", stats.steps)
    yield CounterMetricFamily("penstock_stalls", "Pieces more than a second behind the one before.", pace.stalls)
    deadlines = CounterMetricFamily("penstock_deadlines", "Deadlines by whether they were met.", labels=["met"])
    deadlines.add_metric(["yes"], pace.deadlines_met)
    deadlines.add_metric(["no"], pace.deadlines_missed)
    yield deadlines
    for name, about, found in (
        ("first", "From a question to its first text, of the newest answers.", pace.first_ms),
        ("between", "Between two pieces of one answer, of the newest.", pace.between_ms),
    ):
        family = GaugeMetricFamily(f"penstock_pace_{name}_seconds", about, labels=["quantile"])
        for quantile, milliseconds in found.items():
            family.add_metric([f"0.{quantile[1:]}"], milliseconds * 1e-3)
        yield family
