"""Train and measure the tiny video-language model.

    python -m penstock.worlds.shapes.train --out DIR             see first, then answer
    python -m penstock.worlds.shapes.train --out DIR --resume    go on where the last run was stopped
    python -m penstock.worlds.shapes.train --out DIR --start MODEL --ideal 0 --reduced 0.5    learn more

A training is a function of its seed: it may be stopped and resumed anywhere.  It pauses while a benchmark asks for
quiet (`penstock.worlds.quiet`).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from penstock.errors import InputError, PenstockError
from penstock.worlds.muon import Muon
from penstock.worlds.net import FarView, clamped_view
from penstock.worlds.quiet import wait_for_quiet
from penstock.worlds.runs import load_run, save_run
from penstock.worlds.shapes.export import Progress, export
from penstock.worlds.shapes.net import ShapesNet, pixels
from penstock.worlds.shapes.outline import WORDS
from penstock.worlds.shapes.perceive import perceive
from penstock.worlds.shapes.rows import KINDS, Batch, RowMaker, batch_of
from penstock.worlds.shapes.tokens import encode, train_tokenizer

LOCAL = (48, 64, 96, 128, 192)  # distances from which far keys are read at one place


@dataclass(frozen=True)
class TrainConfig:
    """Every field is a command line option."""

    out: str = "tiny-vlm"  # where the model folder is written
    run: str = "runs/tiny-vlm"  # where the training state is kept
    see: int = 800  # steps in which the tower learns to see
    steps: int = 1100  # steps in which the model learns to answer
    start: str = ""  # a model folder whose weights to begin with, instead of learning to see
    ideal: int = 900  # of these, the first in which it is shown what a tower without faults would say: cheaper
    rows: int = 8  # rows per step
    length: int = 256  # tokens per row
    seed: int = 0  # names the training
    lr: float = 2e-3  # peak learning rate
    warmup: int = 40  # steps in which the rate rises
    every_clamped: int = 4  # one step in so many reads far keys at a clamped distance
    reduced: float = 0.25  # share of the rows in which a reducer has left something out
    decay: float = 0.5  # last share of the steps in which the rate falls to 2 percent
    save_every: int = 50  # steps between saved states
    minutes: float = 0.0  # after which to save and stop; 0 is never
    threads: int = 1  # of the arithmetic
    resume: bool = False  # go on from the state in --run


def optimizers_of(net: ShapesNet, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest; the tower stays as it is."""
    named = [(n, p) for n, p in net.named_parameters() if "vision_tower" not in n]
    matrices = [p for n, p in named if p.dim() == 2 and "embed" not in n and "projector" not in n]
    projector = [p for n, p in named if p.dim() == 2 and "projector" in n]
    others = [p for n, p in named if p.dim() != 2 or "embed" in n]
    groups = [{"params": matrices, "scale": 1.0}, {"params": projector, "scale": 0.1}]
    return [
        Muon(groups, lr=lr, weight_decay=0.05, momentum=0.95),
        torch.optim.AdamW([{"params": others, "scale": 0.4}], lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def begin_with(net: ShapesNet, folder: Path) -> None:
    """Take the weights of a model folder that `export` wrote.

    Raises:
        InputError: there are none, or those of a model of another shape.
    """
    try:
        net.load_exported(load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{folder} holds no weights of this model: give a folder that was written with --out."
        ) from error


class Trainer:
    """One training; `run()` goes on until the steps or the minutes are used up."""

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self.config, self.console = config, console
        torch.set_num_threads(config.threads)
        self.folder = Path(config.run)
        self.tokenizer = train_tokenizer()
        self.net = ShapesNet(config.seed)
        self.optimizers = optimizers_of(self.net, config.lr)
        self.state = Progress(config.seed)
        if config.resume:
            self.state = load_run(self.folder, self.net, self.optimizers, Progress)
        elif config.start:
            begin_with(self.net, Path(config.start))
            self.state.sees = True
        self.maker = RowMaker(self.tokenizer, config.length, reduced=config.reduced)

    def see(self) -> None:
        """The first part, if it has not been done."""
        if self.state.sees:
            return
        for step, report in enumerate(perceive(self.net, self.config.see, self.config.seed, 64)):
            if step % 50 == 49:
                wait_for_quiet()
                self._note({"see": step + 1} | report)
        ids = [encode(self.tokenizer, f" {word}")[0] for word in WORDS]
        trunk = self.net.language_model
        self.net.outline.prepare(trunk.embed_tokens, trunk.layers, ids)
        self.state.sees = True
        save_run(self.folder, self.net, self.optimizers, self.state)

    def _note(self, report: dict[str, float]) -> None:
        line = json.dumps({k: round(v, 4) for k, v in report.items()})
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(line + "\n")
        self.console.print(line, soft_wrap=True)

    def batch(self, step: int) -> tuple[Batch, FarView | None]:
        """The rows of a step."""
        config = self.config
        rng = random.Random(f"shapes:{self.state.seed}:{step}")
        self.maker.pictures = step >= config.ideal
        batch = batch_of([self.maker.make(rng) for _ in range(config.rows)])
        if step % config.every_clamped != config.every_clamped - 1:
            return batch, None
        local = torch.tensor([rng.choice(LOCAL) for _ in range(config.rows)])
        return batch, clamped_view(config.length, local)

    def step(self) -> dict[str, float]:
        """One step; what the log shows."""
        state, config = self.state, self.config
        left = (config.steps - state.step) / (config.steps * config.decay)
        rate = config.lr * min(1.0, (state.step + 1) / config.warmup) * max(0.02, min(1.0, left))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            optimizer.zero_grad()
        batch, view = self.batch(state.step)
        loss, report = loss_of(self.net, batch, view)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in self.optimizers for q in g.param_groups for p in q["params"]], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        state.step += 1
        return report

    def run(self) -> None:
        """Train; saves at the end, on a stop and on an interrupt."""
        began = time.monotonic()
        self.see()
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        try:
            while self.state.step < self.config.steps:
                wait_for_quiet()
                for key, value in self.step().items():
                    sums[key] = sums.get(key, 0.0) + value
                    counts[key] = counts.get(key, 0) + 1
                if self.state.step % 25 == 0:
                    seconds = time.monotonic() - began
                    mean = {key: sums[key] / counts[key] for key in sums}
                    self._note({"step": self.state.step, "seconds": seconds} | mean)
                    sums, counts = {}, {}
                if self.state.step % self.config.save_every == 0:
                    save_run(self.folder, self.net, self.optimizers, self.state)
                if self.config.minutes and time.monotonic() - began > self.config.minutes * 60:
                    break
        finally:
            if self.state.sees:
                save_run(self.folder, self.net, self.optimizers, self.state)
        export(Path(self.config.out), self.net, self.tokenizer)


def loss_of(net: ShapesNet, batch: Batch, view: FarView | None) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch, and the share of targets that came first, by kind."""
    if batch.images is None:  # what the tower would say if it saw all
        said = net.outline.target(batch.labels[batch.picked[:, 0], batch.picked[:, 1]])
        said = said + 0.004 * torch.randn(said.shape, generator=torch.Generator().manual_seed(int(batch.tokens.sum())))
    else:
        with torch.no_grad():
            features = net.vision.features(pixels(batch.images))
        said = net.vision.multi_modal_projector(features[batch.picked[:, 0], batch.picked[:, 1]])
    hidden = net(batch.tokens, said, view)
    where = batch.weights > 0
    logits = net.logits(hidden[where])
    targets, weights, kinds = batch.targets[where], batch.weights[where], batch.kinds[where]
    losses = F.cross_entropy(logits, targets, reduction="none")
    loss = (losses * weights).sum() / weights.sum()
    right = (logits.argmax(1) == targets).float()
    report = {"loss": loss.item()}
    for index, kind in enumerate(KINDS):
        if (mine := kinds == index).any():
            report[kind] = right[mine].mean().item()
    return loss, report


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m penstock.worlds.shapes.train", description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    for field in fields(TrainConfig):
        option = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=field.default, help=" ")
        else:
            parser.add_argument(option, type=type(field.default), default=field.default, help=" ")
    try:
        Trainer(TrainConfig(**vars(parser.parse_args(arguments))), Console(stderr=True)).run()
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("penstock: stopped; go on with --resume.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
