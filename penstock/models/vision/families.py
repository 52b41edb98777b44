"""Families of vision-language models: how each sees one temporal unit, and what stands around it in the stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from penstock.errors import UnsupportedModel
from penstock.models.vision.pictures import Arithmetic, fitted, patches


class Seen(NamedTuple):
    """Embeddings [n, hidden], deepstack layers [n, hidden] each, and the grid in time, height and width."""

    embeddings: Tensor
    deep: tuple[Tensor, ...]
    grid: tuple[int, int, int]


@dataclass(frozen=True)
class Framing:
    """Text around a unit.  `{i}` is its number from 1, `{t}` its seconds, `{clock}` its time as MM:SS."""

    before: str = ""
    behind: str = ""
    opens: str = ""  # once, before the first unit of a run of units
    closes: str = ""  # once, when text follows a run of units

    def fill(self, index: int, t: float) -> tuple[str, str]:
        """The text before and behind a unit."""
        clock = f"{int(t) // 60:02d}:{int(t) % 60:02d}"
        values = {"i": index + 1, "t": f"{t:.1f}", "clock": clock}
        return self.before.format(**values), self.behind.format(**values)


class Family(ABC):
    """One family; towers are called as the model itself calls them."""

    axes = 1
    unit = 1  # frames that the model joins in time
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    framing = Framing()

    def __init__(self, hf: Any) -> None:
        self.hf, self.config = hf, hf.config

    def size(self, height: int, width: int, how: Arithmetic) -> tuple[int, int]:
        """The size that pictures of this size are given."""
        side = self.config.vision_config.image_size
        fixed = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
        return how.size or fixed

    @abstractmethod
    def see(self, pixels: Tensor) -> Seen:
        """One unit: pixels [unit, 3, h, w]."""

    def closing(self) -> Tensor | None:
        """Embeddings [n, hidden] that end a run of units, where a family has such."""
        return None

    def advance(self, units: int) -> int:
        """How far time moves on the time axis from one unit of a run to the next (three axes)."""
        return 0


class InternVL(Family):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    framing = Framing("Frame{i}: <img>", "</img>\n")

    def see(self, pixels: Tensor) -> Seen:
        found = self.hf.get_image_features(pixel_values=pixels, return_dict=True).pooler_output.flatten(0, 1)
        side = round(len(found) ** 0.5)
        return Seen(found, (), (1, side, len(found) // side))


class LlavaOnevision(Family):
    def see(self, pixels: Tensor) -> Seen:
        found = self.hf.get_video_features(pixel_values_videos=pixels[None], return_dict=True).pooler_output[0, :-1]
        side = round(len(found) ** 0.5)
        return Seen(found, (), (1, side, len(found) // side))

    def closing(self) -> Tensor | None:
        newline: Tensor = self.hf.model.image_newline
        return newline.detach()[None]


class SmolVLM(Family):
    framing = Framing(
        "Frame from {clock}:<fake_token_around_image><global-img>", "<fake_token_around_image>\n"
    )  # fmt: skip

    def see(self, pixels: Tensor) -> Seen:
        side = self.config.vision_config.patch_size
        mask = torch.ones(len(pixels), pixels.shape[2] // side, pixels.shape[3] // side, dtype=torch.bool)
        inner = self.hf.model
        hidden = inner.vision_model(
            pixel_values=pixels.to(inner.dtype), patch_attention_mask=mask.to(pixels.device)
        ).last_hidden_state
        found = inner.connector(hidden).flatten(0, 1)
        rows = round(len(found) ** 0.5)
        return Seen(found, (), (1, rows, len(found) // rows))


class Qwen25VL(Family):
    axes = 3
    mean, std = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    framing = Framing(opens="<|vision_start|>", closes="<|vision_end|>")

    def __init__(self, hf: Any) -> None:
        super().__init__(hf)
        vision = self.config.vision_config
        self.unit = int(vision.temporal_patch_size)
        self.side, self.merge = int(vision.patch_size), int(vision.spatial_merge_size)

    def size(self, height: int, width: int, how: Arithmetic) -> tuple[int, int]:
        return how.size or fitted(height, width, self.side * self.merge, how.least, how.most)

    def see(self, pixels: Tensor) -> Seen:
        rows, columns = pixels.shape[2] // self.side, pixels.shape[3] // self.side
        grid = torch.tensor([[1, rows, columns]], device=pixels.device)
        cut = patches(pixels, self.side, self.merge, self.unit)
        out = self.hf.get_video_features(cut, grid, return_dict=True)
        found = out.pooler_output
        deep = getattr(out, "deepstack_features", None) or ()
        joined = tuple(layer[0] if isinstance(layer, (tuple, list)) else layer for layer in deep)
        return Seen(found[0], joined, (1, rows // self.merge, columns // self.merge))

    def advance(self, units: int) -> int:
        return units  # positions of a run's units are set by the rate (Vision.interval)


class Qwen3VL(Qwen25VL):
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    framing = Framing("<{t} seconds><|vision_start|>", "<|vision_end|>")


FAMILIES: dict[str, Callable[[Any], Family]] = {
    "internvl": InternVL,
    "llava_onevision": LlavaOnevision,
    "smolvlm": SmolVLM,
    "idefics3": SmolVLM,
    "qwen2_vl": Qwen25VL,
    "qwen2_5_vl": Qwen25VL,
    "qwen3_vl": Qwen3VL,
}
"""Families by transformers' model type."""


def family_of(hf: Any) -> Family:
    """The family of a model; UnsupportedModel if it has none that we know."""
    kind = getattr(hf.config, "model_type", "")
    if kind not in FAMILIES:
        raise UnsupportedModel(
            f"{type(hf).__name__} ({kind or 'no model type'}) does not see: choose a model of the families "
            f"{', '.join(FAMILIES)}."
        )
    return FAMILIES[kind](hf)


def axes_of(hf: Any) -> int:
    """How many axes the positions of a model have: three where its rotary embedding is cut into sections."""
    text = hf.config.get_text_config() if hasattr(hf.config, "get_text_config") else hf.config
    settings = getattr(text, "rope_parameters", None) or {}
    return 3 if isinstance(settings, dict) and settings.get("mrope_section") else 1
