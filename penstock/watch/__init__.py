"""Watching: a stream of frames, a model that sees, questions at any time and standing requests."""

from __future__ import annotations

from penstock.watch.events import Event
from penstock.watch.eyes import Eyes, Reader
from penstock.watch.pipeline import Pipeline
from penstock.watch.questions import Agenda, Question, parse_question
from penstock.watch.speaking import Requests, request_of
from penstock.watch.watch import Limits, Watch

__all__ = [
    "Agenda",
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
