"""Training state on disk (safetensors and JSON, never pickle) and the exported model folder."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from penstock.errors import InputError, OutputError, SnapshotError
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


def _optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    return {
        f"optimizer.{number}.{index}.{name}": value.detach().contiguous().clone()
        for number, optimizer in enumerate(optimizers)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def save_run(folder: Path, net: Net, optimizers: list[torch.optim.Optimizer], progress: Progress) -> None:
    """Write `state.safetensors` and `state.json`; each file is replaced at once, so a kill leaves the old state.

    Raises:
        OutputError: the folder cannot be written.
    """
    tensors = {f"net.{key}": value.detach().contiguous().clone() for key, value in net.state_dict().items()}
    tensors |= _optimizer_tensors(optimizers)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "state.tmp", metadata={"progress": json.dumps(asdict(progress))})
        os.replace(folder / "state.tmp", folder / "state.safetensors")
        (folder / "state.json").write_text(json.dumps(asdict(progress), indent=2) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write the training state to {folder}: choose another folder with --run.") from error


def load_run(folder: Path, net: Net, optimizers: list[torch.optim.Optimizer]) -> Progress:
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
