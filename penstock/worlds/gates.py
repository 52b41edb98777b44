"""Which heads must see everything: the gates of DuoAttention (arXiv:2410.10819), trained on the facts world.

    python -m penstock.worlds.gates --model DIR --out gates.json

Every key-value head gets a gate in [0, 1]: its output is gate * full attention + (1 - gate) * attention to the first
and the newest tokens.  All weights are frozen; the gates start at 1 and are trained so that the hidden states from
which answers are predicted stay those of full attention, while the mean gate is pushed down.  A second training has one
gate per layer (for methods that choose by layer), and the locality of the heads is measured beside.  The last line that
is printed is the document of the file.

Differs from the paper: the gated stream reads its own full attention, not that of the other stream; questions are those
of the facts world, asked anywhere in a context of the model's length; an order of magnitude fewer steps.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from penstock.errors import OutputError, PenstockError
from penstock.models.inspect import inspect
from penstock.models.load import load
from penstock.worlds import probe
from penstock.worlds.batches import library_tokens
from penstock.worlds.evaluate import load_net
from penstock.worlds.facts import FactsWorld
from penstock.worlds.net import Attention, Net, Rotations, rotary, rotate
from penstock.worlds.quiet import wait_for_quiet
from penstock.worlds.tokenizer import BOS_ID, encode
from penstock.worlds.views import Rows


@dataclass(frozen=True)
class GatesConfig:
    """Every field is a command line option."""

    model: str = "penstock/models/tiny"  # the model folder
    out: str = "gates.json"  # where the gates are written
    sinks: int = 16  # first tokens that every head sees
    window: int = 48  # newest tokens that every head sees, the query included
    steps: int = 100  # of each training
    rows: int = 2  # contexts per step
    lr: float = 0.02  # peak learning rate
    reg: float = 0.05  # weight of the mean gate in the loss
    seed: int = 0  # of the questions
    questions: int = 200  # to measure recall with, after the training


class Gated:
    """A model under gates [layers, key-value heads], or [layers, 1] where all heads of a layer share one."""

    def __init__(self, net: Net, sinks: int, window: int) -> None:
        self.net, self.sinks, self.window = net.requires_grad_(False), sinks, window

    def visible(self, length: int) -> Tensor:
        """[T, T] bool: what a streaming head sees."""
        index = torch.arange(length)
        distance = index[:, None] - index[None, :]
        return (distance >= 0) & ((distance < self.window) | (index[None, :] < self.sinks))

    def hidden(self, tokens: Tensor, gates: Tensor | None) -> Tensor:
        """Final normalised states [B, T, C] of tokens [B, T]; no gates are gates of 1."""
        at = Rotations(rotary(torch.arange(tokens.shape[1]), self.net.config))
        x: Tensor = self.net.model.embed_tokens(tokens)
        streaming = self.visible(tokens.shape[1])
        layer: Any
        for i, layer in enumerate(self.net.model.layers):
            if gates is None:
                x = layer(x, at)
                continue
            x = x + self._attend(layer.self_attn, layer.input_layernorm(x), at, gates[i], streaming)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        out: Tensor = self.net.model.norm(x)
        return out

    def logits(self, tokens: Tensor, gates: Tensor | None) -> Tensor:
        """Of the last token [B, V]."""
        return F.linear(self.hidden(tokens, gates)[:, -1], self.net.model.embed_tokens.weight)

    @staticmethod
    def _attend(layer: Attention, x: Tensor, at: Rotations, gate: Tensor, streaming: Tensor) -> Tensor:
        batch, length, _ = x.shape
        groups = layer.heads // layer.kv_heads
        q = layer.q_proj(x).view(batch, length, layer.heads, layer.dim).transpose(1, 2)
        k = layer.k_proj(x).view(batch, length, layer.kv_heads, layer.dim).transpose(1, 2)
        v = layer.v_proj(x).view(batch, length, layer.kv_heads, layer.dim).transpose(1, 2)
        q, k = rotate(q, at.near), rotate(k, at.near).repeat_interleave(groups, dim=1)
        scores = q @ k.transpose(-1, -2) * layer.dim**-0.5
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        share = gate.expand(layer.kv_heads).repeat_interleave(groups)[:, None, None]
        weights = share * scores.masked_fill(~causal, float("-inf")).softmax(-1)
        weights = weights + (1 - share) * scores.masked_fill(~streaming, float("-inf")).softmax(-1)
        out = weights @ v.repeat_interleave(groups, dim=1)
        mixed: Tensor = layer.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
        return mixed


def learning_rate(config: GatesConfig, step: int) -> float:
    """Up over the first fifth of the steps, down over the last fifth to a tenth."""
    fifth = max(1.0, config.steps / 5)
    return config.lr * min(1.0, (step + 1) / fifth, max(0.1, (config.steps - step) / fifth))


def contexts(tokenizer: Tokenizer, length: int, config: GatesConfig, step: int) -> tuple[Tensor, Tensor]:
    """Rows [B, T] of the facts world with questions, and where the next token is an answer [B, T] bool."""
    rng = random.Random(f"gates:{config.seed}:{step}")
    world = FactsWorld(config.seed + 31, density=0.8, sentences=(0, 3))
    rows = Rows(lambda text: encode(tokenizer, text), length, world, next_passage=step * 1000)
    made = [rows.stream(rng) for _ in range(config.rows)]
    weights = torch.tensor([row.weights for row in made])
    answers = torch.zeros(weights.shape, dtype=torch.bool)
    answers[:, :-1] = weights[:, 1:] >= rows.answer_weight
    return torch.tensor([row.ids for row in made]), answers


def train(gated: Gated, tokenizer: Tokenizer, config: GatesConfig, by_head: bool, bar: Progress) -> Tensor:
    """[layers, key-value heads] or [layers, 1]: the trained gates."""
    shape = gated.net.config
    gates = torch.ones(shape.num_hidden_layers, shape.num_key_value_heads if by_head else 1, requires_grad=True)
    optimizer = torch.optim.AdamW([gates], lr=config.lr, weight_decay=0.0)
    task = bar.add_task("heads" if by_head else "layers", total=config.steps)
    for step in range(config.steps):
        wait_for_quiet()
        tokens, answers = contexts(tokenizer, shape.max_position_embeddings, config, step)
        with torch.no_grad():
            wanted = gated.hidden(tokens, None)
            gates.clamp_(0.0, 1.0)
        apart = (gated.hidden(tokens, gates) - wanted).square().mean(-1)[answers]
        loss = apart.sum() / max(1, len(apart)) + config.reg * gates.abs().mean()
        optimizer.param_groups[0]["lr"] = learning_rate(config, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.update(
            task, advance=1, description=f"loss {float(loss.detach()):.4f} mean {float(gates.detach().mean()):.2f}"
        )
    return gates.detach().clamp(0.0, 1.0)


def kept(gates: Tensor, share: float) -> Tensor:
    """The highest `share` of the gates as 1, the others as 0; of equal ones the first are kept."""
    order = gates.flatten().argsort(descending=True, stable=True)
    out = torch.zeros(gates.numel())
    out[order[: round(share * gates.numel())]] = 1.0
    return out.view_as(gates)


@torch.no_grad()
def recall(gated: Gated, rows: probe.Probe, gates: Tensor | None, size: int = 8) -> float:
    """Share of questions answered inside the context."""
    pairs = zip(rows.tokens.split(size), rows.answers.split(size))
    return float(torch.cat([gated.logits(t, gates).argmax(-1) == a for t, a in pairs]).float().mean())


def locality(config: GatesConfig, tokenizer: Tokenizer) -> list[list[float]]:
    """[layers][key-value heads]: share of the newest tokens in what a head reads, for methods that split by reach."""
    attached = load(config.model, dtype="float32").attached
    found = inspect(attached, library_tokens(tokenizer, heldout=False)[: 1 << 20], [BOS_ID])
    attached.detach()
    return [[round(share, 4) for share in layer.local] for layer in found.layers]


def measure(config: GatesConfig, console: Console) -> dict[str, object]:
    """Train both, measure recall with half of them, as one JSON document."""
    began = time.monotonic()
    net, tokenizer = load_net(Path(config.model))
    gated = Gated(net, config.sinks, config.window)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        heads = train(gated, tokenizer, config, True, bar)
        layers = train(gated, tokenizer, config, False, bar)
    shape = net.config
    rows = probe.contiguous(
        lambda t: encode(tokenizer, t), shape.max_position_embeddings, config.questions, config.seed + 1
    )
    return {
        "shape": {
            "layers": shape.num_hidden_layers, "query_heads": shape.num_attention_heads,
            "kv_heads": shape.num_key_value_heads, "width": shape.head_dim,
        },
        "heads": [[round(gate, 4) for gate in row] for row in heads.tolist()],
        "layers": [round(gate, 4) for gate in layers.flatten().tolist()],
        "local": locality(config, tokenizer),
        "recall": {
            "dense": recall(gated, rows, None),
            "half of the heads": recall(gated, rows, kept(heads, 0.5)),
            "half of the layers": recall(gated, rows, kept(layers, 0.5)),
            "the other half of the heads": recall(gated, rows, 1 - kept(heads, 0.5)),
            "none": recall(gated, rows, torch.zeros_like(heads)),
        },
        "training": {name: value for name, value in asdict(config).items() if name not in ("model", "out")},
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def write(path: Path, found: dict[str, object]) -> None:
    """The document as a file that methods read."""
    try:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} was not written ({error.strerror}): choose another place with --out.") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m penstock.worlds.gates", description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    for field in fields(GatesConfig):
        parser.add_argument("--" + field.name, type=type(field.default), default=field.default, help=" ")
    try:
        config = GatesConfig(**vars(parser.parse_args(arguments)))
        found = measure(config, Console(stderr=True))
        write(Path(config.out), found)
        print(json.dumps(found))
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
