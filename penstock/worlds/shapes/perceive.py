"""The first part of the training: the vision tower and projector learn to say what is in each place of a picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from penstock.worlds.shapes.drawing import draw
from penstock.worlds.shapes.net import SIDE, ShapesNet, pixels
from penstock.worlds.shapes.outline import CODES
from penstock.worlds.shapes.things import Timeline


def labels_at(timeline: Timeline, t: float) -> NDArray[np.int64]:
    """[4, 5]: for each place its shape, colour, plate (-1 where it is empty), the place itself, whether it meets."""
    out = np.full((4, 5), -1, dtype=np.int64)
    out[:, 3], out[:, 4] = np.arange(4), 0
    for thing in timeline.at(t):
        out[thing.place, :3] = thing.look.shape, thing.look.colour, thing.look.plate
        out[thing.place, 4] = timeline.touches(thing, t)
    return out


def samples(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Pictures uint8 [count, SIDE, SIDE, 3] and labels [count, 4, 5], from many worlds, under changing light."""
    random = np.random.default_rng(seed)
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    while len(images) < count:
        timeline = Timeline(int(random.integers(1 << 30)), pace=1.0, most=4)
        start = float(random.uniform(0, 2))
        for i in range(8):
            t = start + i * 1.7
            meets = [thing.meets for thing in timeline.at(t + 1.0) if thing.other >= 0]
            t = meets[0] + random.uniform(0.2, 1.8) if meets and i % 2 else t
            image: NDArray[Any] = draw(
                timeline, t, (SIDE, SIDE), random.uniform(0, 8), random.uniform(0.9, 1.06)
            ).astype(np.float32)
            image = image * random.uniform(0.85, 1.12, 3) + random.uniform(-10, 10)
            images.append(image.clip(0, 255).astype(np.uint8))
            labels.append(labels_at(timeline, t))
    return torch.from_numpy(np.stack(images[:count])), torch.from_numpy(np.stack(labels[:count]))


def loss_of(net: ShapesNet, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the share [5] of labels that are said rightly, by attribute."""
    said = net.vision(pixels(images)).flatten(0, 1)
    flat = labels.flatten(0, 1)
    loss = F.mse_loss(said, net.outline.target(flat)) / 0.04**2
    right = []
    for column, logits in enumerate(net.outline.scores(said).values()):
        wanted = torch.where(flat[:, column] < 0, logits.shape[1] - 1, flat[:, column])
        loss = loss + F.cross_entropy(logits, wanted)
        right.append((logits.argmax(1) == wanted).float().mean())
    return loss, torch.stack(right)


def perceive(net: ShapesNet, steps: int, seed: int, batch: int = 48, lr: float = 2e-3) -> Iterator[dict[str, float]]:
    """Train for some steps; one report per step."""
    parameters = list(net.vision.parameters())
    matrices = [p for p in parameters if p.dim() == 2]
    others = [p for p in parameters if p.dim() != 2]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            [{"params": matrices}], lr=lr, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW([{"params": others}], lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]  # fmt: skip
    for step in range(steps):
        images, labels = samples(seed * 1_000_003 + step, batch)
        rate = lr * min(1.0, (step + 1) / 30) * max(0.03, min(1.0, 1.6 * (1 - step / steps)))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
        loss, right = loss_of(net, images, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        yield {"loss": loss.item(), **{kind: float(share) for kind, share in zip((*CODES, "meets"), right)}}
