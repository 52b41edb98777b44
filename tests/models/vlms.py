"""Vision-language models of every family, tiny and random, and their own one-shot reading of a video."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as hub
from torch import Tensor

from penstock.core import Frame
from penstock.models.load import load
from penstock.models.vision import Vision
from penstock.models.vision.pictures import patches

TEXT = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 4}
QWEN = {
    "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64, "patch_size": 4,
    "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
IDS = {"image_token_id": 250, "video_token_id": 251, "vision_start_token_id": 252, "vision_end_token_id": 253}
SIZES = {
    "internvl": (16, 16), "smolvlm": (16, 16), "llava_onevision": (24, 24), "qwen2_5_vl": (16, 24),
    "qwen3_vl": (16, 24),
}  # fmt: skip
FAMILIES = tuple(SIZES)


def rope(**more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, **more}


def build(family: str) -> Any:
    """A random model of a family."""
    torch.manual_seed(0)
    if family == "qwen2_5_vl":
        text = TEXT | {"rope_parameters": rope(mrope_section=[2, 3, 3])}
        vision = QWEN | {"window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2}
        model: Any = hub.Qwen2_5_VLForConditionalGeneration(
            hub.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **IDS)
        )
    elif family == "qwen3_vl":
        text = TEXT | {"head_dim": 16, "rope_parameters": rope(mrope_section=[4, 2, 2], mrope_interleaved=True)}
        vision = QWEN | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        model = hub.Qwen3VLForConditionalGeneration(hub.Qwen3VLConfig(text_config=text, vision_config=vision, **IDS))
    elif family == "llava_onevision":
        tower = hub.SiglipVisionConfig(**TOWER, image_size=24)
        model = hub.LlavaOnevisionForConditionalGeneration(
            hub.LlavaOnevisionConfig(
                text_config=hub.Qwen2Config(**TEXT), vision_config=tower, image_token_index=250, video_token_index=251,
                image_grid_pinpoints=[[24, 24]],
            )
        )  # fmt: skip
    elif family == "internvl":
        tower = TOWER | {"image_size": (16, 16), "patch_size": (4, 4)}
        model = hub.InternVLForConditionalGeneration(
            hub.InternVLConfig(text_config=hub.Qwen2Config(**TEXT), vision_config=tower, image_token_id=250)
        )
    else:
        model = hub.SmolVLMForConditionalGeneration(
            hub.SmolVLMConfig(
                text_config=hub.LlamaConfig(**TEXT), vision_config=TOWER | {"image_size": 16}, image_token_id=250,
                scale_factor=2,
            )
        )  # fmt: skip
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    return model.eval()


def eyes(family: str, model: Any = None) -> Vision:
    """The vision of a random model, at a fixed size and two frames per second."""
    return Vision(load(build(family) if model is None else model), size=SIZES[family], rate=2.0)


def video(count: int = 6, size: tuple[int, int] = (24, 32), seed: int = 0) -> list[Frame]:
    """Frames of noise."""
    draw = np.random.default_rng(seed)
    return [Frame(draw.integers(0, 255, (*size, 3), dtype=np.uint8), i / 2, i) for i in range(count)]


def around(family: str, unit: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids before and behind each unit: what the family's processor writes, in a vocabulary without words."""
    if family == "qwen3_vl":
        return (5 + unit, 252), (253,)
    return ((5 + unit,), (7,)) if family in ("internvl", "smolvlm") else ((), ())


@torch.no_grad()
def one_shot(family: str, vision: Vision, frames: list[Frame], head: list[int], tail: list[int]) -> Tensor:
    """Logits [V] behind text, the whole video and text, by the model's own code in one pass."""
    hf: Any = vision.model.attached.hf
    seen = vision.pixels([frame.image for frame in frames])
    units = len(frames) // vision.unit
    token = 250 if family in ("internvl", "smolvlm") else 251
    more: dict[str, Any] = {}
    if family.startswith("qwen"):
        side, merge = vision.family.side, vision.family.merge  # type: ignore[attr-defined]
        grid = torch.tensor([[units, seen.shape[2] // side, seen.shape[3] // side]])
        each = int(grid[0, 1:].prod()) // merge**2
        more = {"pixel_values_videos": patches(seen, side, merge, vision.unit), "video_grid_thw": grid}
        if family == "qwen2_5_vl":
            more["second_per_grid_ts"] = torch.tensor([vision.unit / vision.rate])
    elif family == "llava_onevision":
        each = (hf.get_video_features(seen[None], return_dict=True).pooler_output.shape[1] - 1) // units
        more = {"pixel_values_videos": seen[None]}
    else:
        each = len(vision.family.see(seen[:1]).embeddings)
        more = {"pixel_values": seen if family == "internvl" else seen[None]}
    ids = list(head)
    for unit in range(units):
        before, behind = around(family, unit)
        ids += [*before, *[token] * each, *behind]
    ids += [token] * (family == "llava_onevision") + tail
    if family.startswith("qwen"):
        more["mm_token_type_ids"] = (torch.tensor([ids]) == token).long() * 2
    with vision.model.attached.native():
        out: Tensor = hf(input_ids=torch.tensor([ids]), **more).logits[0, -1]
    return out
