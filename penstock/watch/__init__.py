"""Watching: a stream of frames, a model that sees, questions at any time and standing requests."""

from __future__ import annotations

from penstock.watch.counts import Limits
from penstock.watch.events import Event
from penstock.watch.eyes import Eyes, Reader
from penstock.watch.pipeline import Pipeline
from penstock.watch.questions import Agenda, Question, parse_question
from penstock.watch.speaking import Requests, request_of
from penstock.watch.voice import Asked
from penstock.watch.watch import Watch

__all__ = [
    "Agenda",
    "Asked",
    "Event",
    "Eyes",
    "Limits",
    "Pipeline",
    "Question",
    "Reader",
    "Requests",
    "Watch",
    "parse_question",
    "request_of",
]
