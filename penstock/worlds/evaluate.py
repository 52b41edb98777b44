"""What a tiny model can do: recall by place in the context under three views, loss on held-out text, need for sinks.

plain        one contiguous context
renumbered   sinks + far blocks of 32 tokens + a window, positions counted through
clamped      one contiguous context in which every distance of `--local` or more counts as `--local` - 1
loss         held-out library text inside the context, and beyond it with (a) dense attention, (b) a window,
             (c) sinks and a window at contiguous positions
"""

from __future__ import annotations

import json
import math
import time
from array import array
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from penstock.errors import InputError
from penstock.worlds import probe
from penstock.worlds.batches import library_tokens
from penstock.worlds.net import Attention, FarView, Net, NetConfig, clamped_view, window_view
from penstock.worlds.tokenizer import BOS_ID, encode

_PARTS = 8


@dataclass(frozen=True)
class EvalConfig:
    """Options of `eval`; every field is a command line option."""

    model: str = "penstock/models/tiny"  # the model folder
    rows: int = 400  # questions per view
    local: int = 128  # where distances are clamped, and the window of the renumbered view, in tokens
    loss_rows: int = 64  # held-out rows of one context
    long_rows: int = 8  # held-out rows of four contexts, for the need of sinks
    window: int = 256  # budget of the windows, sinks included, in tokens
    sinks: int = 4  # sinks of the sink window
    seed: int = 123  # of the questions


def load_net(folder: Path) -> tuple[Net, Tokenizer]:
    """The model of a folder in float32, and its tokenizer.

    Raises:
        InputError: the folder has no model.
    """
    if not (folder / "model.safetensors").exists():
        raise InputError(f"there is no model.safetensors in {folder}: name a folder that training wrote, with --model.")
    names = set(NetConfig.__dataclass_fields__)
    config = json.loads((folder / "config.json").read_text())
    net = Net(NetConfig(**{key: value for key, value in config.items() if key in names}))
    net.load_state_dict({key: value.float() for key, value in load_file(folder / "model.safetensors").items()})
    return net, Tokenizer.from_file(str(folder / "tokenizer.json"))


def recall_by_place(net: Net, rows: probe.Probe, view: FarView | None = None) -> dict[str, object]:
    """Recall over all rows and by eighth of the context in which the statement begins (null where none does)."""
    found = probe.hits(net, rows, view).float()
    place = rows.starts * _PARTS // rows.tokens.shape[1]
    parts = [found[place == part] for part in range(_PARTS)]
    return {
        "recall": round(float(found.mean()), 4),
        "by_place": [round(float(part.mean()), 4) if len(part) else None for part in parts],
        "questions": len(found),
    }


@torch.no_grad()
def _losses(net: Net, rows: Tensor, view: FarView | None = None) -> Tensor:
    """Loss per token in nats [B, T-1], one row at a time."""
    return torch.cat([net.losses(row[None], view) for row in rows])


def _spread(tokens: array[int], num_rows: int, length: int, bos: bool = True) -> Tensor:
    """Rows [num_rows, length + 1] spread over a long text."""
    size = length + 1 - bos
    stride = max(1, (len(tokens) - size) // num_rows)
    return torch.tensor([[BOS_ID] * bos + list(tokens[i * stride : i * stride + size]) for i in range(num_rows)])


def text_loss(net: Net, tokenizer: Tokenizer, tokens: array[int], num_rows: int) -> dict[str, float]:
    """Held-out loss inside the context: nats per token, bits per byte, bytes per token; the BOS counts for nothing."""
    rows = _spread(tokens, num_rows, net.config.max_position_embeddings)
    num_bytes = sum(len(tokenizer.decode(row[1:].tolist(), skip_special_tokens=True).encode()) for row in rows)
    per_token = float(_losses(net, rows).mean())
    predicted = rows[:, 1:].numel()
    return {
        "nats_per_token": round(per_token, 4),
        "bits_per_byte": round(per_token * predicted / math.log(2) / num_bytes, 4),
        "bytes_per_token": round(num_bytes / predicted, 3),
    }


def need_for_sinks(net: Net, tokens: array[int], config: EvalConfig) -> dict[str, list[float]]:
    """Held-out loss in nats per token by context length passed (0-512, 512-1024, ...), for three ways to go on."""
    context = net.config.max_position_embeddings
    length = 4 * context
    rows = _spread(tokens, config.long_rows, length)
    views = {
        "dense": None,
        "window": window_view(length, 0, config.window),
        "sinks and window": window_view(length, config.sinks, config.window - config.sinks),
    }
    out = {}
    for name, view in views.items():
        losses = _losses(net, rows, view)
        out[name] = [round(float(part.mean()), 4) for part in losses.split(context, dim=1)]
    return out


@torch.no_grad()
def sink_mass(net: Net, tokens: array[int], num_rows: int = 8) -> list[float]:
    """Per layer, the mean attention that later queries (from 64 on) give to the first token, over heads and rows."""
    rows = _spread(tokens, num_rows, 256)[:, :-1]
    length = rows.shape[1]
    mass = []

    def watch(query: Tensor, key: Tensor) -> None:
        scores = (query @ key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
        scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), float("-inf"))
        mass.append(round(float(scores.softmax(-1)[:, :, 64:, 0].mean()), 4))

    attentions = [module for module in net.modules() if isinstance(module, Attention)]
    for attention in attentions:
        attention.watch = watch
    try:
        net(rows)
    finally:
        for attention in attentions:
            attention.watch = None
    return mass


def measure(config: EvalConfig) -> dict[str, object]:
    """Everything that `eval` prints, as one JSON document."""
    began = time.monotonic()
    net, tokenizer = load_net(Path(config.model))
    context = net.config.max_position_embeddings

    def ids(text: str) -> list[int]:
        return encode(tokenizer, text)

    plain = probe.contiguous(ids, context, config.rows, config.seed)
    headless = probe.contiguous(ids, context, config.rows, config.seed + 1, bos=False)
    blocks = probe.scattered(ids, context, config.rows, config.seed + 2, window=config.local)
    clamp = clamped_view(context, torch.full((config.rows,), config.local))
    heldout = library_tokens(tokenizer, heldout=True)
    return {
        "model": config.model,
        "parameters": sum(weight.numel() for weight in net.parameters()),
        "recall": {
            "plain": recall_by_place(net, plain),
            "plain, no BOS": recall_by_place(net, headless),
            "renumbered": recall_by_place(net, blocks),
            "clamped": recall_by_place(net, plain, clamp),
            "renumbered and clamped": recall_by_place(net, blocks, clamp),
        },
        "heldout": text_loss(net, tokenizer, heldout, config.loss_rows),
        "beyond the context": need_for_sinks(net, heldout, config),
        "attention to the first token": sink_mass(net, heldout),
        "seconds": round(time.monotonic() - began, 1),
    }


def evaluate(config: EvalConfig, console: Console) -> None:
    """Print the tables, then the JSON document on the last line."""
    found = measure(config)
    table = Table(title="recall by the place of the statement in the context")
    table.add_column("view")
    table.add_column("all", justify="right")
    for part in range(_PARTS):
        table.add_column(f"{part}/{_PARTS}", justify="right")
    for name, entry in found["recall"].items():  # type: ignore[attr-defined]
        cells = [entry["recall"], *entry["by_place"]]
        table.add_row(name, *("-" if cell is None else f"{cell:.3f}" for cell in cells))
    console.print(table)
    table = Table(title="held-out loss beyond the context, nats per token")
    for head in ("attention", "0-512", "512-1024", "1024-1536", "1536-2048"):
        table.add_column(head, justify="left" if head == "attention" else "right")
    for name, losses in found["beyond the context"].items():  # type: ignore[attr-defined]
        table.add_row(name, *(f"{loss:.3f}" for loss in losses))
    console.print(table)
    console.print(f"held-out text: {found['heldout']}")
    print(json.dumps(found))
