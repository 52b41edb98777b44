"""From a model's name to what a watcher needs of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from penstock.errors import CompositionError
from penstock.models.load import load
from penstock.reducers import Chain
from penstock.session import Session
from penstock.triggers import Trigger, parse
from penstock.watch.eyes import Eyes, Reader


@dataclass(frozen=True)
class Sight:
    """An open session on a model that sees."""

    eyes: Eyes
    reader: Reader
    name: str
    budget: int | None  # entries
    trigger: str | None = None  # when to speak, of a model that was trained to be silent
    side: int | None = None  # pixels: the longer side of what the tower reads, where pictures of all sizes become one

    @property
    def default_trigger(self) -> Trigger:
        return parse(self.trigger or "change")

    @property
    def keeps_sides_apart(self) -> bool:
        """Whether the memory reads as if nothing were being written, so that frames may enter between words."""
        session: Any = self.reader
        return all(getattr(cascade, "blind", ()) for cascade in session._memory.cascades)

    def use(self, chain: Chain) -> None:
        """Run the tower as a chain says; CompositionError where this one cannot be run layer by layer."""
        if not chain.tower:
            return
        from penstock.models.vision.layers import can_run
        from penstock.watch.model_eyes import ModelEyes

        if not isinstance(self.eyes, ModelEyes) or not can_run(self.eyes.vision):
            raise CompositionError(
                f"{chain.tower[0].name} needs a vision tower like those of SmolVLM and InternVL: leave it out here."
            )
        self.eyes.use(chain)


def open_sight(
    model: str | None, memory: str, budget: str | None, *, device: str = "cpu", dtype: str | None = None,
    rate: float | None = None,
) -> Sight:  # fmt: skip
    """Open a session on a model that sees (None: the tiny one that is shipped); UnsupportedModel for one that does not.

    `rate`: frames per second that will come, which the positions of some models depend on.
    """
    from penstock.models.vision import Vision
    from penstock.models.vision.tower import VLM
    from penstock.watch.model_eyes import ModelEyes

    loaded = load(VLM if model is None else model, device=device, dtype=dtype)
    vision = Vision(loaded, rate=rate)
    session = Session(loaded, memory, budget, vision=vision)
    name = "the tiny video-language model" if model is None else loaded.name
    eyes = ModelEyes(vision, session)
    return Sight(eyes, session, name, session.budget, vision.trigger, eyes.side)
