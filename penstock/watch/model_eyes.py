"""The eyes of a vision-language model: its own processor and tower, and the session that reads what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from penstock.core import Frame
from penstock.errors import CompositionError
from penstock.models.vision import Vision, Visual
from penstock.models.vision.layers import layer_by_layer
from penstock.reducers import Chain, Moment, Reduced
from penstock.reducers.stc_cache import StcCache
from penstock.session import Session


@dataclass(frozen=True)
class Encoded(Moment):
    """A unit for reducers to look at, with what the model needs to read it."""

    of_model: Visual | None = None


class ModelEyes:
    """The eyes of a vision-language model and the session that they belong to."""

    def __init__(self, vision: Vision, session: Session) -> None:
        self.vision, self.session = vision, session
        self.tower: StcCache | None = None  # leaves out parts of the tower's work
        self._tower_state: Any = None
        self.units = 0  # encoded so far

    @property
    def unit(self) -> int:
        return self.vision.unit

    @property
    def side(self) -> int | None:
        """The longer side in pixels of what the tower reads, if it is the same for pictures of all sizes."""
        sizes = {
            self.vision.size or self.vision.family.size(*shape, self.vision.how) for shape in ((99, 500), (900, 700))
        }
        return max(sizes.pop()) if len(sizes) == 1 else None

    def encode(self, frames: Sequence[Frame]) -> Moment:
        if self.tower is None:
            seen = self.vision.encode(frames, self.units)
        else:
            with layer_by_layer(self.vision.model.attached.hf, self._in_tower):
                seen = self.vision.encode(frames, self.units)
        self.units += 1
        time, rows, columns = seen.grid
        tokens = seen.embeddings.detach()
        return Encoded(tokens, (time * rows, columns), frames[-1].image, frames[-1].t, of_model=seen)

    def use(self, chain: Chain) -> None:
        """Run the tower as the tower reducer of a chain says, if it has one."""
        if len(chain.tower) > 1:
            raise CompositionError("two reducers of one vision tower exclude each other: leave one out.")
        if chain.tower:
            assert isinstance(chain.tower[0], StcCache)
            self.tower, self._tower_state = chain.tower[0], chain.tower[0].start()

    def _in_tower(self, layers: list[Any], hidden: Tensor) -> Tensor:
        assert self.tower is not None
        self._tower_state, out = self.tower.step(self._tower_state, layers, hidden)
        return out

    def read(self, visual: Moment, reduced: Reduced, into: Session | None = None) -> int:
        assert isinstance(visual, Encoded)
        assert visual.of_model is not None
        kept = visual.of_model
        if reduced.skips:
            return 0
        if len(reduced.index) < len(kept):
            kept = kept.keep(reduced.index)
        if reduced.carriers is not None:
            kept = carried(kept, reduced.carriers)
        return (into or self.session).ingest_embeddings(kept)


def carried(visual: Visual, carriers: Tensor) -> Visual:
    """A unit with new tokens behind its own: at the next position, or with three axes at the unit's last one."""
    count, axes = len(carriers), len(visual.positions)
    if axes == 1:
        at, extent = len(visual) + torch.arange(count)[None], visual.extent + count
    else:
        at, extent = torch.full((axes, count), visual.extent - 1), visual.extent
        at[0] = 0
    embeddings = torch.cat([visual.embeddings, carriers.to(visual.embeddings.dtype)])
    deep = tuple(torch.cat([layer, layer.new_zeros(count, layer.shape[1])]) for layer in visual.deep)
    return replace(
        visual, embeddings=embeddings, positions=torch.cat([visual.positions, at], 1), extent=extent, deep=deep
    )
