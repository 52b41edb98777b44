"""How far a training of the text model is, and its model as a folder that transformers loads."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from penstock.errors import OutputError
from penstock.worlds.net import Net
from penstock.worlds.tokenizer import BOS_ID, EOS_ID


@dataclass
class Progress:
    """Where a training stands; everything random is a function of `seed` and `step`."""

    seed: int = 0
    step: int = 0
    tokens: int = 0
    passages: int = 0
    context: int = 512  # tokens per row
    has_lookup: bool = False
    seconds: float = 0.0


def export(folder: Path, net: Net) -> None:
    """Write config, generation config and bfloat16 weights as a folder that transformers loads by itself.

    Raises:
        OutputError: the folder cannot be written.
    """
    generation = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID, "do_sample": False}
    tensors = {key: value.detach().to(torch.bfloat16).contiguous() for key, value in net.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(net.config.to_hf(), indent=2, sort_keys=True) + "\n")
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2, sort_keys=True) + "\n")
        save_file(tensors, folder / "model.tmp", metadata={"format": "pt"})
        (folder / "model.tmp").chmod(0o644)  # safetensors writes files for their owner alone
        os.replace(folder / "model.tmp", folder / "model.safetensors")
    except OSError as error:
        raise OutputError(f"cannot write the model to {folder}: choose another folder with --out.") from error
