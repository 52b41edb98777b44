"""A vision-language model as something that sees: frames to embeddings with positions, one temporal unit at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penstock.core import Frame
from penstock.errors import InputError, UsageError
from penstock.models.load import Model, load
from penstock.models.vision.families import Framing, axes_of, family_of
from penstock.models.vision.pictures import arithmetic
from penstock.models.vision.visual import Visual

VLM = Path(__file__).parents[1] / "tiny_vlm"


class Vision:
    """The processor and the vision tower of a model.

    `size`: height and width that every picture is given; None: the model's, or the first picture's within the model's
    limits.  `rate`: frames per second of the stream, which some models' positions depend on.  `framing`: the text
    around each unit; None: the family's.
    """

    def __init__(
        self, model: Model | nn.Module | str | Path | None = None, *, size: tuple[int, int] | None = None,
        rate: float | None = None, framing: Framing | None = None, tokenizer: Any = None,
    ) -> None:  # fmt: skip
        self.model = load(VLM if model is None else model, tokenizer=tokenizer)
        hf: Any = self.model.attached.hf
        self.family = family_of(hf)
        folder = Path(self.model.name)
        self.how = arithmetic(folder if folder.is_dir() else None, self.family.mean, self.family.std)
        stream = getattr(hf.config, "penstock_stream", None) or {}
        given = Framing(stream["before"], stream["behind"]) if stream else None
        self.framing = framing or given or self.family.framing
        self.rate = float(rate or stream.get("rate") or 2.0)
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise UsageError(f"a stream cannot have {self.rate:g} frames per second: give a rate above 0.")
        self.size = size
        self.unit, self.axes = self.family.unit, axes_of(hf)
        self.silence: int | None = stream.get("silence")
        self.trigger: str | None = stream.get("trigger")  # when to speak, of a model that was trained to be silent

    @property
    def interval(self) -> float:
        """How far the time axis moves from one unit of a run to the next (three axes)."""
        per_second = getattr(self.family.config.vision_config, "tokens_per_second", None)
        return 1.0 if per_second is None else float(per_second) * self.unit / self.rate

    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of framing text; none without a tokenizer."""
        if not text or self.model.tokenizer is None:
            return ()
        return tuple(self.model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        """[n, 3, height, width] as the tower reads them, at the stream's size (settled by the first picture)."""
        for image in images:
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise InputError("a picture must be a uint8 array [height, width, 3]: convert it to RGB first.")
            if not image.size:
                raise InputError("a picture of no size cannot be seen: drop it.")
        if self.size is None:
            height, width = images[0].shape[:2]
            self.size = self.family.size(height, width, self.how)
        shapes = {image.shape for image in images}
        attached = self.model.attached
        parts = [self.how.pixels([image], self.size) for image in images] if len(shapes) > 1 else None
        made = torch.cat(parts) if parts else self.how.pixels(list(images), self.size)
        return made.to(attached.device, attached.geometry.dtype)

    @torch.no_grad()
    def encode(self, frames: Sequence[Frame] | Sequence[np.ndarray], index: int = 0) -> Visual:
        """One temporal unit (`unit` frames; the last is repeated if there are fewer) as the model sees it.

        `index` is the number of the unit in the stream, which some models are told.
        """
        if not 1 <= len(frames) <= self.unit:
            raise UsageError(f"this model sees {self.unit} frames at once, not {len(frames)}: encode unit by unit.")
        images = [frame.image if isinstance(frame, Frame) else frame for frame in frames]
        times = [frame.t if isinstance(frame, Frame) else 0.0 for frame in frames]
        images += [images[-1]] * (self.unit - len(images))
        seen = self.family.see(self.pixels(images))
        time, rows, columns = seen.grid
        count = len(seen.embeddings)
        if self.axes == 1:
            positions, extent = torch.arange(count)[None], count
        else:
            h, w = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            positions = torch.stack([torch.zeros(count, dtype=torch.int64), h.flatten(), w.flatten()])
            extent = max(rows, columns)
        before, behind = self.framing.fill(index, sum(times) / len(times))
        return Visual(
            seen.embeddings, positions, extent, self.ids(before), self.ids(behind), seen.deep, times[0], times[-1],
            (time, rows, columns),
        )  # fmt: skip
