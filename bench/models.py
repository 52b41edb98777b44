"""Which model is measured: one of random weights in a real shape, or the shipped one."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.peers.llama_torch import build_model
from bench.peers.protocol import Setup
from bench.shapes import SHAPES
from penstock.models.attach import Attached
from penstock.models.load import load
from penstock.models.probe import attach

NAMES = (*SHAPES, "shipped")


def attached(name: str, dtype: str, threads: int) -> Attached:
    """A model on penstock, on so many threads; the shipped one has a dtype of its own."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    if name == "shipped":
        return load(None).attached
    return attach(build_model(Setup(SHAPES[name], dtype, threads, Path("."), {})))
