"""Where a training stands, on disk (safetensors and JSON, never pickle): weights, optimisers, progress.

Progress is a dataclass of the training's own; everything random is a function of it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from penstock.errors import InputError, OutputError, SnapshotError

Progress = TypeVar("Progress")


def _optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    return {
        f"optimizer.{number}.{index}.{name}": value.detach().contiguous().clone()
        for number, optimizer in enumerate(optimizers)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def save_run(folder: Path, net: nn.Module, optimizers: list[torch.optim.Optimizer], progress: Any) -> None:
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


def load_run(folder: Path, net: nn.Module, optimizers: list[torch.optim.Optimizer], kind: type[Progress]) -> Progress:
    """Restore what `save_run` wrote; returns its progress, of a `kind`.

    Raises:
        InputError: there is no state in the folder.
        SnapshotError: the state is damaged or belongs to a model of another shape.
    """
    path = folder / "state.safetensors"
    if not path.exists():
        raise InputError(f"there is no training state in {folder}: leave out --resume to start a new training.")
    try:
        with safe_open(path, framework="pt") as file:
            progress = kind(**json.loads(file.metadata()["progress"]))
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
