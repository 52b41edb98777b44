"""What an engine tells of itself: an account of every byte, and counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.engine.records import EngineStats

if TYPE_CHECKING:
    from penstock.engine.engine import Engine


def account(engine: Engine) -> dict[str, int]:
    """Bytes by where they are; raises MemoryStateError where they do not add up."""
    sessions = list(engine.sessions.values())
    for session in sessions:
        session.inbox.check()
    engine.rows.check(sessions)
    return {
        "accepted": sum(s.inbox.accepted for s in sessions),
        "read": sum(s.inbox.read for s in sessions),
        "dropped": sum(s.inbox.dropped for s in sessions),
        "pending": sum(s.inbox.pending for s in sessions),
        "device": engine.memory.nbytes,
        "ram": engine.attic.ram_bytes,
        "disk": engine.attic.disk_bytes,
    }


def stats_of(engine: Engine) -> EngineStats:
    """Counters of this moment."""
    now, rows = engine.clock.now(), engine.rows
    waiting = [s for s in engine.busy.values() if s.has_work]
    stuck = sum(now - max(s.waits_since, s.served) > engine.patience for s in waiting)
    still = now - max(engine.moved, min(s.waits_since for s in waiting)) if waiting else 0.0
    return EngineStats(
        sessions=len(engine.sessions), rows=len(rows), rows_used=len(rows.taken), device_bytes=engine.memory.nbytes,
        ram_bytes=engine.attic.ram_bytes, disk_bytes=engine.attic.disk_bytes, steps=engine.steps,
        tokens_ingested=engine.tokens_ingested, tokens_decoded=engine.tokens_decoded,
        bytes_pending=sum(s.inbox.pending for s in engine.sessions.values()), promotions=rows.promotions,
        demotions=rows.demotions, answers=dict(engine.cadence.ended), pace=engine.cadence.pace(), stuck=stuck,
        still=still, path=engine.runner.status,
    )  # fmt: skip
