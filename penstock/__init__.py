"""penstock: run transformer models on streams that never end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from penstock.client import AsyncClient, Client
from penstock.core import Budget, Chunk
from penstock.errors import PenstockError
from penstock.models.load import Model, load
from penstock.session import Evicted, Mark, Session, Stats
from penstock.snapshot import resume

__version__ = "0.1.0"


def open(
    model: str | Path | nn.Module | Model | None = None,
    memory: str = "streaming-llm",
    budget: Budget | int | str | None = None,
    *,
    tokenizer: Any = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> Session:
    """Open a session: one live stream on one model.

    `model`: a hub name, a folder, a transformers model or a loaded `Model`; None is the tiny model that is shipped.
    `memory`: a method and its options, as in `streaming-llm:sinks=4` (`penstock methods` lists them).
    `budget`: entries per layer and key-value head (4096), or bytes ("64MiB"); None is half the model's context, at
    most 4096.
    `options`: chunk (tokens per step), path (auto, eager, compiled), log (a file for all token ids), measure (keep
    losses), special (read special tokens written in the text as such).
    """
    return Session(load(model, tokenizer=tokenizer, dtype=dtype, device=device), memory, budget, **options)


__all__ = [
    "AsyncClient",
    "Budget",
    "Chunk",
    "Client",
    "Evicted",
    "Mark",
    "Model",
    "PenstockError",
    "Session",
    "Stats",
    "load",
    "open",
    "resume",
]
