"""Vision-language models: pictures in, embeddings with positions out."""

from __future__ import annotations

from penstock.models.vision.families import FAMILIES
from penstock.models.vision.tower import Vision
from penstock.models.vision.visual import Visual, placeholders

__all__ = ["FAMILIES", "Vision", "Visual", "placeholders"]
