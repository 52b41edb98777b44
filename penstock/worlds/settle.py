"""The `settle` stage: words become as loud as digits, and the whole model settles around them.

After `match` the first layer's heads that read 5 and 6 tokens back, where the words of a key stand, write a tenth of
what the others write, so keys are told apart by their number alone.  Here they write `gain` times as much, which costs
text at first, and all weights are trained on:

    text, look-up   the mixture of the text stage
    look-alikes     answers among statements that share words and digits
    contrast        in the second layer the value of the asked statement must win against the keys of all rows, as
                    one key and as the mean of 2 or 4 neighbours, in every head (matching.py, here through layer one)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from penstock.errors import UsageError
from penstock.worlds.batches import Batches, library_tokens
from penstock.worlds.checkpoint import export
from penstock.worlds.evaluate import load_net
from penstock.worlds.facts import FactsWorld
from penstock.worlds.matching import asked, contrast, inside
from penstock.worlds.muon import Muon
from penstock.worlds.net import Net
from penstock.worlds.quiet import wait_for_quiet
from penstock.worlds.tokenizer import encode, save_tokenizer
from penstock.worlds.views import Row, Rows

_EXPORT = 50  # steps between written models
_MEANS = (1, 2, 4)  # neighbours whose mean key must win; blocks of rekv hold four


@dataclass(frozen=True)
class SettleConfig:
    """Options of `settle`; every field is a command line option."""

    model: str = "tiny-matched"  # the folder that `match` wrote
    out: str = "tiny-settled"  # where the model folder is written
    steps: int = 500
    lr: float = 1e-3  # peak; falls to 2 percent
    gain: float = 8.0  # how much louder the words are written
    batch_tokens: int = 3072  # of the text stage's mixture, per step
    rows: int = 3  # of look-alikes, per step
    answers: float = 0.5  # weight of the answers among look-alikes
    contrast: float = 0.3  # weight of the contrast
    seed: int = 0


def louder(net: Net, gain: float) -> None:
    """Let the first layer's heads that read 5 and 6 back write `gain` times as much, in place.

    Raises UsageError for a model without them.
    """
    config = net.config
    group = config.num_attention_heads // config.num_key_value_heads
    if group < 3:
        raise UsageError("this model has no heads that read the words of a key: name a folder that `match` wrote.")
    out = net.layer(0).self_attn.o_proj.weight
    with torch.no_grad():
        for head in (group - 1, 2 * group - 1):
            out[:, head * config.head_dim : (head + 1) * config.head_dim] *= gain


def batched(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """(tokens [B, T + 1], weights [B, T] that sum to 1) of rows of look-alikes."""
    tokens = torch.tensor([row.ids for row in rows])
    weights = torch.tensor([[float(w == 1.0) for w in row.weights[1:]] for row in rows])
    return tokens, weights / weights.sum().clamp(min=1.0)


def settle(config: SettleConfig, console: Console, tick: Callable[[int, dict[str, float]], None] | None = None) -> None:
    """Write the settled model; a function of the model, the options and the seed.  Raises InputError, UsageError."""
    net, tokenizer = load_net(Path(config.model))
    louder(net, config.gain)
    length = net.config.max_position_embeddings
    batches = Batches(tokenizer, library_tokens(tokenizer, heldout=False), config.seed + 1)
    matrices = [p for name, p in net.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in net.named_parameters() if p.dim() != 2 or "embed" in name]
    optimizers = [
        Muon(matrices, lr=config.lr),
        torch.optim.AdamW(others, lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rng = random.Random(f"settle:{config.seed}")
    world = FactsWorld(config.seed + 11, density=0.8, sentences=(0, 2))
    made = Rows(lambda text: encode(tokenizer, text), length + 1, world)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("settling", total=config.steps)
        for step in range(config.steps):
            wait_for_quiet()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    fall = max(0.02, min(1.0, (config.steps - step) / (config.steps * 0.7)))
                    group["lr"] = config.lr * min(1.0, (step + 1) / 30) * fall
                optimizer.zero_grad()
            report = _backward(net, batches, [made.lookalikes(rng) for _ in range(config.rows)], step, config, rng)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            bar.update(task, completed=step + 1, description=" ".join(f"{k} {v:.3f}" for k, v in report.items()))
            if tick is not None:
                tick(step, report)
            if (step + 1) % _EXPORT == 0 or step + 1 == config.steps:
                export(Path(config.out), net)
                save_tokenizer(tokenizer, Path(config.out))


def _backward(
    net: Net, batches: Batches, alike: Sequence[Row], step: int, config: SettleConfig, rng: random.Random
) -> dict[str, float]:
    """Gradients of one step; what the bar shows."""
    batch = batches.make(step, net.config.max_position_embeddings, config.batch_tokens, True, step % 5 == 4)
    losses = net.losses(batch.tokens, batch.view)
    (losses * batch.weights).sum().backward()
    report = {"text": float(losses.detach()[batch.is_text].mean())}

    tokens, weights = batched(alike)
    answers = (net.losses(tokens) * weights).sum()
    pairs = [asked(row) for row in alike]
    held = inside(net, tokens[:, :-1])
    against = contrast(net, held, pairs, rng, mean_of=_MEANS[step % len(_MEANS)])
    (config.answers * answers + config.contrast * against).backward()
    name = f"mean of {_MEANS[step % len(_MEANS)]}"
    return report | {"answers": float(answers.detach()), name: float(against.detach())}
