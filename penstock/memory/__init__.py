"""Memories: bounded (or, for reference, growing) stores of keys and values, read as one attention."""

from penstock.memory.cascade import Cascade, Heads, Placement
from penstock.memory.entries import Entries
from penstock.memory.frames import Frame
from penstock.memory.layout import Geometry, Layer
from penstock.memory.memory import Memory, SegmentView, Step, row_bytes
from penstock.memory.parts import Additive, Offer, Part, Place, Query, Readable, State, Unit
from penstock.memory.positions import Alibi, Rotary
from penstock.memory.segments import Everything, Segment, Sinks, Window
from penstock.memory.vector import Vector

__all__ = [
    "Additive",
    "Alibi",
    "Cascade",
    "Entries",
    "Everything",
    "Frame",
    "Geometry",
    "Heads",
    "Layer",
    "Memory",
    "Offer",
    "Part",
    "Place",
    "Placement",
    "Query",
    "Readable",
    "Rotary",
    "Segment",
    "SegmentView",
    "Sinks",
    "State",
    "Step",
    "Unit",
    "Vector",
    "Window",
    "row_bytes",
]
