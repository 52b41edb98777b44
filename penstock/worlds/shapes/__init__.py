"""The shapes world: an endless generated video with known answers, and the training of its tiny model."""

from __future__ import annotations

from penstock.worlds.shapes.things import COLOURS, PLACES, SHAPES, Event, Look, Thing, Timeline
from penstock.worlds.shapes.world import Question, Shapes

__all__ = ["COLOURS", "PLACES", "SHAPES", "Event", "Look", "Question", "Shapes", "Thing", "Timeline"]
