"""Training state on disk (safetensors and JSON, never pickle) and the exported model folder."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from penstock.errors import InputError, OutputError, SnapshotError
from penstock.worlds.shapes.net import MEAN, SIDE, STD, ShapesNet
from penstock.worlds.shapes.tokens import BOS_ID, EOS_ID, save_tokenizer


@dataclass
class Progress:
    """Where a training stands; everything random is a function of `seed` and `step`."""

    seed: int = 0
    step: int = 0
    sees: bool = False  # the tower is trained


def save_run(folder: Path, net: ShapesNet, optimizers: list[torch.optim.Optimizer], progress: Progress) -> None:
    """Write `state.safetensors`; it is replaced at once, so a kill leaves the old state.

    Raises:
        OutputError: the folder cannot be written.
    """
    tensors = {f"net.{key}": value.detach().contiguous().clone() for key, value in net.state_dict().items()}
    tensors |= {
        f"optimizer.{number}.{index}.{name}": value.detach().contiguous().clone()
        for number, optimizer in enumerate(optimizers)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "state.tmp", metadata={"progress": json.dumps(asdict(progress))})
        os.replace(folder / "state.tmp", folder / "state.safetensors")
    except OSError as error:
        raise OutputError(f"cannot write the training state to {folder}: choose another folder with --run.") from error


def load_run(folder: Path, net: ShapesNet, optimizers: list[torch.optim.Optimizer]) -> Progress:
    """Restore what `save_run` wrote.

    Raises:
        InputError: there is no state in the folder.
        SnapshotError: the state is damaged or belongs to a model of another shape.
    """
    path = folder / "state.safetensors"
    if not path.exists():
        raise InputError(f"there is no training state in {folder}: leave out --resume to start a new training.")
    try:
        with safe_open(path, framework="pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
        tensors = load_file(path)
        net.load_state_dict({key[4:]: value for key, value in tensors.items() if key.startswith("net.")})
    except Exception as error:
        raise SnapshotError(f"the training state {path} cannot be read: delete the folder and start anew.") from error
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            parts = key.split(".")
            if parts[0] == "optimizer" and int(parts[1]) == number:
                state.setdefault(int(parts[2]), {})[".".join(parts[3:])] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


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
    stream = {"before": "", "behind": "<|frame|>", "rate": 2.0, "silence": EOS_ID}
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
