"""Endless generated streams with known answers, and the training of the tiny models.

Nothing here is imported by the memories or the engine; a world is what they are measured on.
"""

from __future__ import annotations

from penstock.worlds.facts import Fact, FactsWorld, Passage
from penstock.worlds.library import heldout_text, training_text
from penstock.worlds.quiet import quiet, wait_for_quiet

__all__ = ["Fact", "FactsWorld", "Passage", "heldout_text", "quiet", "training_text", "wait_for_quiet"]
