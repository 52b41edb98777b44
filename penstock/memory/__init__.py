"""Memories: bounded (or, for reference, growing) stores of keys and values, read as one attention."""

from penstock.memory.cascade import Cascade
from penstock.memory.layout import Geometry, Layer
from penstock.memory.memory import Memory, SegmentView, Step, row_bytes
from penstock.memory.positions import Alibi, Rotary
from penstock.memory.segments import Everything, Segment, Sinks, Window

__all__ = [
    "Alibi",
    "Cascade",
    "Everything",
    "Geometry",
    "Layer",
    "Memory",
    "Rotary",
    "Segment",
    "SegmentView",
    "Sinks",
    "Step",
    "Window",
    "row_bytes",
]
