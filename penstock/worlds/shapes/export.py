"""How far a training of the video-language model is, and its model as a folder that transformers loads."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from penstock.errors import OutputError
from penstock.worlds.shapes.net import MEAN, SIDE, STD, ShapesNet
from penstock.worlds.shapes.tokens import BOS_ID, EOS_ID, save_tokenizer

TRIGGER = "silence:threshold=0.7,sure=0.5,again=3"  # when to speak; chosen on streams of their own


@dataclass
class Progress:
    """Where a training stands; everything random is a function of `seed` and `step`."""

    seed: int = 0
    step: int = 0
    sees: bool = False  # the tower is trained


def export(folder: Path, net: ShapesNet, tokenizer: Tokenizer) -> None:
    """Write the model as a folder that transformers loads by itself: config, processors, bfloat16 weights, tokenizer.

    Raises:
        OutputError: the folder cannot be written.
    """
    generation = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID, "do_sample": False}
    picture = {
        "image_processor_type": "GotOcr2ImageProcessor", "do_resize": True, "size": {"height": SIDE, "width": SIDE},
        "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [MEAN] * 3, "image_std": [STD] * 3, "do_convert_rgb": True, "crop_to_patches": False,
        "processor_class": "InternVLProcessor",
    }  # fmt: skip
    # How frames of a stream stand between tokens (penstock.models.vision): text before and behind each.
    stream = {"before": "", "behind": "<|frame|>", "rate": 2.0, "silence": EOS_ID, "trigger": TRIGGER}
    config = net.hf_config.to_dict() | {"penstock_stream": stream}
    tensors = {key: value.detach().to(torch.bfloat16).contiguous() for key, value in net.exported().items()}
    try:
        save_tokenizer(tokenizer, folder)
        for name, content in (
            ("config", config), ("generation_config", generation), ("preprocessor_config", picture),
        ):  # fmt: skip
            (folder / f"{name}.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        save_file(tensors, folder / "model.tmp", metadata={"format": "pt"})
        (folder / "model.tmp").chmod(0o644)  # safetensors writes files for their owner alone
        os.replace(folder / "model.tmp", folder / "model.safetensors")
    except OSError as error:
        raise OutputError(f"cannot write the model to {folder}: choose another folder with --out.") from error
