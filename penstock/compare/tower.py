"""Generated frames as a vision tower sees them, encoded once for all pairs that leave no frame out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from penstock.core import Frame
from penstock.models.vision import Vision
from penstock.reducers import Chain
from penstock.watch.model_eyes import Encoded, ModelEyes
from penstock.worlds.shapes.world import Shapes

_KEPT = 256 << 20  # bytes of encoded frames that are kept for the next pair


class Tower:
    """Encoded units of streams of the shapes world; kept as far as there is room, without `pixels` if nobody asks."""

    def __init__(self, vision: Vision, pixels: bool) -> None:
        self.vision, self.pixels = vision, pixels
        self._known: dict[int, list[Encoded]] = {}  # by the seed of the world
        self._bytes = 0

    def units(self, seed: int, count: int, chain: Chain) -> Iterator[Encoded]:
        """Of the first `count` frames, those that the chain's frame reducers let through, in whole units."""
        if chain.frames:
            yield from self._encode(_reduced(frames(seed, count), chain))
            return
        units = count // self.vision.unit
        known = self._known.get(seed, [])
        if len(known) >= units:
            yield from known[:units]
            return
        made = []
        for encoded in self._encode(frames(seed, count)):
            made.append(encoded if self.pixels else replace(encoded, image=None))
            yield encoded
        size = sum(each.tokens.nbytes + (0 if each.image is None else each.image.nbytes) for each in made)
        if self._bytes + size <= _KEPT:
            self._known[seed] = made
            self._bytes += size

    def _encode(self, source: Iterator[Frame]) -> Iterator[Encoded]:
        eyes, unit = ModelEyes(self.vision, None), list[Frame]()  # type: ignore[arg-type]
        for frame in source:
            unit.append(frame)
            if len(unit) == self.vision.unit:
                encoded = eyes.encode(unit)
                assert isinstance(encoded, Encoded)
                yield encoded
                unit = []


def frames(seed: int, count: int) -> Iterator[Frame]:
    """The first frames of a stream."""
    world = Shapes(seed)
    for _ in range(count):
        yield next(world)


def _reduced(source: Iterator[Frame], chain: Chain) -> Iterator[Frame]:
    """What frame reducers let through."""
    state = chain.start()
    for frame in source:
        state, verdict = chain.frame(state, frame)
        if verdict.frame is not None:
            yield verdict.frame
