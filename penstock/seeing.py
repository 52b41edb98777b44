"""A session's eyes: frames wait here until they make a temporal unit, and enter the memory as embeddings.

What enters, and in which order, is the session's log as always; a visual token has no id, so the log records a negative
number made from its content.  Units that follow each other without text between form a *run*: some models read a run as
one video (its opening and closing are let in here), all others frame every unit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from penstock.core import Frame, Kind, Phase
from penstock.errors import InputError, NotRewindable, UsageError
from penstock.memory.cascade import Placement
from penstock.models.embedded import Inputs, placed
from penstock.models.load import Model
from penstock.models.vision import FAMILIES, Vision, Visual, placeholders
from penstock.models.vision.families import axes_of

if TYPE_CHECKING:
    from penstock.session import Session

_PLACES = 4096  # borders between text and pictures that can be returned to


def sees(model: Model) -> bool:
    """Whether a model has eyes that we know."""
    return getattr(model.attached.hf.config, "model_type", "") in FAMILIES


def cascades_for(model: Model, cascades: Sequence[Placement]) -> Sequence[Placement]:
    """What a session's memory is made of: with positions of three axes, entries keep theirs."""
    hf: Any = model.attached.hf
    return placed(cascades, type(hf).__name__) if sees(model) and axes_of(hf) > 1 else cascades


@dataclass
class Place:
    """Where the stream stands: tokens so far, the next position, units so far, and units of the open run."""

    length: int = 0
    next: int = 0
    units: int = 0
    run: int = 0
    start: int = 0  # the position at which the open run began
    visual: bool = False  # what led here were pictures


class Seer:
    """The part of a session that sees.  Without pictures it costs nothing."""

    def __init__(self, model: Model, vision: Vision | None = None) -> None:
        self.model, self.vision = model, vision
        self.axes = axes_of(model.attached.hf) if sees(model) else 1
        self.now = Place()
        self.places: deque[Place] = deque(maxlen=_PLACES)
        self.waiting: list[Frame] = []
        self._closing = False

    def eyes(self) -> Vision:
        """The model's own vision, made when it is first needed."""
        if self.vision is None:
            self.vision = Vision(self.model)
        return self.vision

    def push(self, session: Session, frame: Frame | np.ndarray) -> Visual | None:
        """One more frame; a Visual when it completes a unit."""
        session._check_idle()
        vision = self.eyes()
        image = frame.image if isinstance(frame, Frame) else frame
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError("a frame must hold a uint8 array [height, width, 3]: convert it to RGB first.")
        if not isinstance(frame, Frame):
            frame = Frame(image, 0.0, self.now.units * vision.unit + len(self.waiting))
        self.waiting.append(frame)
        if len(self.waiting) < vision.unit:
            return None
        frames, self.waiting = self.waiting, []
        return vision.encode(frames, self.now.units)

    def ingest(self, session: Session, visual: Visual, phase: Phase) -> int:
        """Let in one unit with what stands around it; returns the tokens entered."""
        session._check_idle()
        if not session._has_own:
            raise UsageError("a session that shares its memory's rows reads text only: open one of its own to see.")
        vision = self.eyes()
        hidden = vision.model.attached.hf.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        if visual.embeddings.dim() != 2 or visual.embeddings.shape[1] != hidden:
            raise InputError(f"these embeddings are {tuple(visual.embeddings.shape)}, not [tokens, {hidden}].")
        before = session.tokens
        session.flush()
        opens = vision.ids(vision.framing.opens) if self.now.run == 0 else ()
        if self.axes == 1:
            self._whole(session, visual, (*opens, *visual.before), phase)
        else:
            self._text(session, (*opens, *visual.before), phase)
            if self.now.run == 0:
                self.now.start = self.now.next
            if len(visual):
                self._pictures(session, visual, phase)
            self._text(session, visual.behind, phase)
        self.now.run += 1
        self.now.units += 1
        if not (vision.framing.closes or self._closes()):
            self.now.run = 0
        return session.tokens - before

    def _closes(self) -> bool:
        vision = self.eyes()
        return vision.family.closing() is not None

    def _text(self, session: Session, ids: Sequence[int], phase: Phase) -> None:
        """Framing text."""
        for start in range(0, len(ids), session.chunk):
            session._step(list(ids[start : start + session.chunk]), phase)

    def _whole(self, session: Session, visual: Visual, before: Sequence[int], phase: Phase) -> None:
        """A unit and the text around it as one sequence: fewer steps."""
        attached, behind = session.model.attached, visual.behind
        embed: Any = attached.hf.get_input_embeddings()  # type: ignore[operator]
        with torch.no_grad():
            text = embed(torch.tensor([*before, *behind], dtype=torch.int64, device=attached.device))
        shown = visual.embeddings.to(attached.device, attached.geometry.dtype)
        first, count = len(before), len(visual)
        x = torch.cat([text[:first], shown, text[first:]])
        ids = [*before, *placeholders(shown), *behind]
        is_visual = torch.zeros(len(ids), dtype=torch.bool)
        is_visual[first : first + count] = True
        kinds = torch.where(is_visual, int(Kind.VISION), int(Kind.TEXT)).to(torch.uint8)
        inputs = Inputs(x, visual=is_visual.to(attached.device), deep=visual.deep)
        for start in range(0, len(ids), session.chunk):
            stop = min(len(ids), start + session.chunk)
            session._step(ids[start:stop], phase, kinds[start:stop], inputs.cut(start, stop))

    def _pictures(self, session: Session, visual: Visual, phase: Phase) -> None:
        """The embeddings of a unit, in steps."""
        device, count = session.model.attached.device, len(visual)
        ids = placeholders(visual.embeddings)
        offsets = at = None
        if self.axes > 1:
            in_run = bool(self.eyes().framing.closes)
            base = self.now.start if in_run else self.now.next
            offsets = visual.positions.clone()
            if in_run:
                offsets[0] += int(self.now.run * self.eyes().interval)
            at = torch.full((count,), base, dtype=torch.int64)
            offsets = offsets.to(device)
            self.now.next = base + visual.extent
        dtype = session.model.attached.geometry.dtype
        inputs = Inputs(
            visual.embeddings.to(device, dtype), offsets, at, torch.ones(count, dtype=torch.bool, device=device),
            visual.deep,
        )  # fmt: skip
        kinds = torch.full((count,), int(Kind.VISION), dtype=torch.uint8)
        for start in range(0, count, session.chunk):
            stop = min(count, start + session.chunk)
            session._step(ids[start:stop], phase, kinds[start:stop], inputs.cut(start, stop))

    def close(self, session: Session, phase: Phase) -> None:
        """Text follows: end an open run as the model expects it."""
        if self.now.run == 0 or self._closing:
            return
        vision = self.eyes()
        self.now.run = 0
        self._closing = True
        try:
            end = vision.family.closing()
            if end is not None:
                where = torch.zeros(self.axes, len(end), dtype=torch.int64)
                self._pictures(session, Visual(end, where, len(end)), phase)
            self._text(session, vision.ids(vision.framing.closes), phase)
        finally:
            self._closing = False

    # -- bookkeeping --------------------------------------------------------------------------------------------

    def inputs(self, count: int, inputs: Inputs | None) -> Inputs | None:
        """What a step of text is given: its positions, where they are not the index."""
        if inputs is not None or self.axes == 1:
            return inputs
        return Inputs(at=torch.arange(self.now.next, self.now.next + count))

    def stepped(self, at: int, count: int, inputs: Inputs | None) -> None:
        """A step from token `at` on was taken."""
        visual = inputs is not None and inputs.embeddings is not None
        if self.axes == 1:
            return
        if not visual:
            self.now.next += count
            if not self.places:
                return
        if not self.places:
            self.places.append(Place(at, at))
        self.now.length, self.now.visual = at + count, visual
        last = self.places[-1]
        if last.visual or visual or last.run != self.now.run:
            self.places.append(Place(**asdict(self.now)))

    def check_cut(self, length: int, last: int) -> None:
        """NotRewindable where the stream cannot be cut without a mark."""
        if last < 0:
            raise NotRewindable(
                f"the token before {length} belongs to a picture, which is not kept: open a mark there before."
            )

    def cut(self, length: int) -> None:
        """The newest tokens are gone, so that `length` remain."""
        self.waiting = []
        if not self.places:
            self.now.next, self.now.run = length, 0
            return
        while self.places and self.places[-1].length > length:
            self.places.pop()
        base = self.places[-1] if self.places else Place()
        self.now = Place(**asdict(base))
        self.now.next, self.now.length = base.next + length - base.length, length

    def clear(self) -> None:
        """A new stream."""
        self.now, self.waiting = Place(), []
        self.places.clear()

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state; frames that wait for a unit are not kept."""
        return {"now": asdict(self.now), "places": [asdict(place) for place in self.places]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of state_dict."""
        self.now = Place(**state["now"])
        self.places = deque((Place(**place) for place in state["places"]), maxlen=_PLACES)
        self.waiting = []
