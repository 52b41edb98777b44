"""Live sessions: what comes in is let in while the model speaks."""

from __future__ import annotations

from penstock.live.inbox import Inbox
from penstock.live.interpret import Interpreter
from penstock.live.live import Live, LiveEvent
from penstock.live.notes import Notes, TextNotes
from penstock.live.share import Share

__all__ = ["Inbox", "Interpreter", "Live", "LiveEvent", "Notes", "Share", "TextNotes"]
