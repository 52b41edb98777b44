"""A slice of bench/serve_fuzz.py: broken connections of every kind beside a healthy session, which must not notice."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.robust.attack import Healthy, attack, settle
from bench.robust.cases import Cases
from penstock.models.load import Model


def test_broken_connections(serving: Callable[..., Any], model: Model, tmp_path: Path, caplog: Any) -> None:
    running = serving(model, tmp_path)
    running.http.post("/v1/sessions", json={"id": "healthy"})
    stops = threading.Event()
    healthy = Healthy(running.address, "healthy", stops)
    thread = threading.Thread(target=healthy.run, daemon=True)
    thread.start()
    cases = Cases(1, model.name)
    attack(running.address, cases, 60)
    assert settle(running.address, {"healthy"}) == {"extra_sessions": 0, "busy": 0, "health": "ok"}
    files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    attack(running.address, cases, 60)
    assert settle(running.address, {"healthy"}) == {"extra_sessions": 0, "busy": 0, "health": "ok"}
    stops.set()
    thread.join(60)
    assert healthy.failures == []
    assert healthy.answers
    assert healthy.wrong(model, 32) == 0
    if files:
        assert len(os.listdir("/proc/self/fd")) <= files + 8  # idle connections of clients, and nothing that grows
    metrics = running.http.get("/metrics").text
    assert 'status="500"' not in metrics
    assert not [record for record in caplog.records if record.exc_info], caplog.text
    server = running.app.state.server
    assert (server.answering, server.lines) == (0, 0)
