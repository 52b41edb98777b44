"""Pictures of the shapes world: plates and shapes on a dim, slightly uneven ground, in plain numpy."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from penstock.worlds.shapes.things import PLATE, SHAPES, Thing, Timeline

Image = NDArray[np.uint8]
_RGB = np.array(
    [
        (215, 40, 45), (40, 165, 60), (45, 75, 225), (235, 215, 50),
        (240, 240, 240), (150, 55, 185), (240, 140, 30), (60, 205, 220),
    ],
    dtype=np.uint8,
)  # fmt: skip


@cache
def _mask(shape: int, height: int, width: int) -> NDArray[np.bool_]:
    """Where a shape lies in a box [height, width]."""
    v, u = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    radius = np.hypot(u, v)
    name = SHAPES[shape]
    if name == "circle":
        return radius <= 0.95
    if name == "square":
        return np.maximum(abs(u), abs(v)) <= 0.8
    if name == "triangle":
        return (v <= 0.85) & (abs(u) <= (v + 0.95) * 0.53)
    if name == "cross":
        return np.minimum(abs(u), abs(v)) <= 0.3
    if name == "ring":
        return (radius <= 1.0) & (radius >= 0.55)
    turn = np.arctan2(u, -v)
    sector = abs((turn + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)  # a five-pointed star, point up
    return radius <= 0.42 / (np.cos(sector) * 0.42 + np.sin(sector) * 0.80 + 1e-9)


@lru_cache(maxsize=4)
def _ground(seed: int, height: int, width: int) -> Image:
    """A ground that no two seeds share."""
    draw = np.random.default_rng((seed, 77))
    v, u = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    base = draw.uniform(18, 48, 3) + v[..., None] * draw.uniform(-12, 12, 3) + u[..., None] * draw.uniform(-12, 12, 3)
    return base.clip(0, 70).astype(np.uint8)


def _paste(image: Image, thing: Thing, t: float, towards: int | None, scale: float = 1.0) -> None:
    tall, wide = image.shape[0] / 2, image.shape[1] / 2
    down, right = thing.offset(t, towards)
    middle = (thing.place // 2 + 0.5 + down) * tall, (thing.place % 2 + 0.5 + right) * wide
    for part, colour in ((PLATE * scale, thing.look.plate), (PLATE * 0.66 * scale, thing.look.colour)):
        height, width = max(3, round(tall * part)), max(3, round(wide * part))
        top = min(max(0, round(middle[0] - height / 2)), image.shape[0] - height)
        left = min(max(0, round(middle[1] - width / 2)), image.shape[1] - width)
        box = image[top : top + height, left : left + width]
        if part == PLATE * scale:
            box[:] = _RGB[colour]
        else:
            box[_mask(thing.look.shape, height, width)] = _RGB[colour]


def draw(timeline: Timeline, t: float, size: tuple[int, int], noise: float = 0.0, scale: float = 1.0) -> Image:
    """The picture [height, width, 3] at second t; `noise` is the standard deviation of the grain, of 255."""
    image = _ground(timeline.seed, *size).copy()
    for thing in timeline.at(t):
        other = timeline.partner(thing)
        _paste(image, thing, t, None if other is None else other.place, scale)
    return grained(image, noise, timeline.seed, t)


def grained(image: Image, noise: float, seed: int, t: float) -> Image:
    """The picture under seeded grain."""
    if not noise:
        return image
    grain = np.random.default_rng((seed, round(t * 1000))).normal(0.0, noise, image.shape)
    return (image + grain).clip(0, 255).astype(np.uint8)
