"""Train and evaluate the shipped tiny models.

    python -m penstock.worlds.train text --out DIR     look up first, then text and look-up mixed
    python -m penstock.worlds.train text --resume      go on where the last run was stopped
    python -m penstock.worlds.train match --out DIR    then: tell apart statements that are alike
    python -m penstock.worlds.train settle --out DIR   then: words as loud as digits, all weights around them
    python -m penstock.worlds.train eval --model DIR   recall and loss as a table; the last line is JSON

A training is a function of its seed: it may be stopped and resumed anywhere. It pauses while a benchmark asks for
quiet (`penstock.worlds.quiet`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor

from penstock.errors import PenstockError
from penstock.worlds import probe
from penstock.worlds.batches import Batch, Batches, library_tokens
from penstock.worlds.checkpoint import Progress as State
from penstock.worlds.checkpoint import export
from penstock.worlds.evaluate import EvalConfig, evaluate
from penstock.worlds.match import MatchingConfig, match
from penstock.worlds.net import FarView, Net, NetConfig
from penstock.worlds.quiet import wait_for_quiet
from penstock.worlds.runs import load_run, save_run
from penstock.worlds.settle import SettleConfig, settle
from penstock.worlds.tokenizer import encode, save_tokenizer, train_tokenizer

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@dataclass(frozen=True)
class TrainConfig:
    """Options of `text`; every field is a command line option."""

    out: str = "tiny-model"  # where the model folder is written
    run: str = "runs/tiny"  # where the training state is kept
    tokens: int = 6_000_000  # tokens to train on in all
    seed: int = 0  # names the training
    batch_tokens: int = 4096  # tokens per step
    lr: float = 2e-3  # peak learning rate
    decay: float = 0.6  # last share of the tokens in which the rate falls to 2 percent
    save_every: int = 50  # steps between saved states
    stop_after: float = 0.0  # minutes after which to save and stop; 0 is never
    compile: bool = True  # compile the step
    resume: bool = False  # go on from the state in --run


def make_optimizers(net: Net, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for name, p in net.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in net.named_parameters() if p.dim() != 2 or "embed" in name]
    muon = [{"params": matrices, "scale": 1.0}]
    adam = [{"params": others, "scale": 0.5}]
    return [
        torch.optim.Muon(muon, lr=lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(adam, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate(config: TrainConfig, state: State) -> float:
    """Linear warm-up over 100 steps, constant, then linear decay to 2 percent."""
    left = max(0.0, config.tokens - state.tokens) / (config.tokens * config.decay)
    return config.lr * min(1.0, (state.step + 1) / 100) * max(0.02, min(1.0, left))


class Trainer:
    """One training; `run()` goes on until the tokens or the minutes are used up."""

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self.config, self.console = config, console
        self.folder = Path(config.run)
        self.tokenizer = self._tokenizer()
        generator = torch.Generator().manual_seed(config.seed)
        self.net = Net(NetConfig(vocab_size=self.tokenizer.get_vocab_size()), generator)
        self.optimizers = make_optimizers(self.net, config.lr)
        self.state = (
            load_run(self.folder, self.net, self.optimizers, State) if config.resume else State(seed=config.seed)
        )
        self.batches = Batches(self.tokenizer, library_tokens(self.tokenizer, heldout=False), self.state.seed)
        self.batches.passages = self.state.passages
        self.heldout = library_tokens(self.tokenizer, heldout=True)
        self.losses = torch.compile(self.net.losses) if config.compile else self.net.losses

    def _tokenizer(self) -> Tokenizer:
        path = self.folder / "tokenizer" / "tokenizer.json"
        if not (self.config.resume and path.exists()):
            self.console.print("training the tokenizer")
            save_tokenizer(train_tokenizer(), path.parent)
        return Tokenizer.from_file(str(path))

    def step(self) -> dict[str, float]:
        """One step; returns what the log shows."""
        state, config = self.state, self.config
        clamped = state.step % 5 == 4
        batch = self.batches.make(state.step, state.context, config.batch_tokens, state.has_lookup, clamped)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, state) * group["scale"]
            optimizer.zero_grad()
        report = self._backward(batch)
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        state.step += 1
        state.tokens += batch.weights.numel()
        state.passages = self.batches.passages
        return report

    def _backward(self, batch: Batch, rows_per_pass: int = 8) -> dict[str, float]:
        text, other, num_text = 0.0, 0.0, 0
        for at in range(0, len(batch.tokens), rows_per_pass):
            part = slice(at, at + rows_per_pass)
            view = FarView(*(t[part] for t in batch.view)) if batch.view is not None else None
            with torch.autocast("cpu", torch.bfloat16):
                losses: Tensor = self.losses(batch.tokens[part], view)
            loss = (losses * batch.weights[part]).sum()
            loss.backward()
            is_text = batch.is_text[part]
            text += float(losses.detach()[is_text].sum())
            num_text += int(is_text.sum()) * losses.shape[1]
            other += float((losses.detach() * batch.weights[part])[~is_text].sum())
        return {"text": text / max(1, num_text), "lookup": other}

    def recall(self, context: int, num_rows: int = 64) -> float:
        """Share of facts answered inside a context."""
        rows = probe.contiguous(lambda t: encode(self.tokenizer, t), context, num_rows, seed=99_991 + self.state.step)
        return float(probe.hits(self.net, rows).float().mean())

    @torch.no_grad()
    def heldout_loss(self, num_rows: int = 8) -> float:
        """Cross entropy in nats per token on rows spread over the held-out text."""
        stride = len(self.heldout) // num_rows
        rows = torch.tensor([[0, *self.heldout[i * stride : i * stride + self.state.context]] for i in range(num_rows)])
        return float(self.net.losses(rows).mean())

    def save(self) -> None:
        """Write the state, and the model folder once look-up works."""
        save_run(self.folder, self.net, self.optimizers, self.state)
        if self.state.has_lookup:
            export(Path(self.config.out), self.net)
            save_tokenizer(self.tokenizer, Path(self.config.out))

    def _check(self) -> dict[str, float]:
        state = self.state
        found = {"recall": self.recall(state.context)}
        if found["recall"] > 0.93 and not state.has_lookup:
            state.has_lookup = True
        if state.has_lookup:
            found["heldout"] = self.heldout_loss()
        return found

    def run(self) -> None:
        """Train; saves at the end, on a stop and on an interrupt."""
        state, config = self.state, self.config
        began, last = time.monotonic(), time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as bar, (self.folder / "log.jsonl").open("a") as log:
            task = bar.add_task("training", total=config.tokens, completed=state.tokens)
            shown: dict[str, float] = {}
            try:
                while state.tokens < config.tokens:
                    paused = wait_for_quiet()
                    report = self.step()
                    now = time.monotonic()
                    state.seconds, last = state.seconds + now - last - paused, now
                    if state.step % (50 if state.has_lookup else 25) == 0:
                        shown = report | self._check()
                        line = {"step": state.step, "tokens": state.tokens, "context": state.context} | shown
                        log.write(json.dumps(line | {"seconds": round(state.seconds, 1)}) + "\n")
                        log.flush()
                    words = " ".join(f"{key} {value:.3f}" for key, value in (shown | report).items())
                    bar.update(task, completed=state.tokens, description=f"context {state.context} {words}")
                    if state.step % config.save_every == 0:
                        self.save()
                    if config.stop_after and now - began > config.stop_after * 60:
                        break
            finally:
                self.save()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m penstock.worlds.train", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    stages = {"text": TrainConfig, "match": MatchingConfig, "settle": SettleConfig, "eval": EvalConfig}
    for name, kind in stages.items():
        command = commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        for field in fields(kind):
            option = "--" + field.name.replace("_", "-")
            if isinstance(field.default, bool):
                command.add_argument(option, action=argparse.BooleanOptionalAction, default=field.default, help=" ")
            else:
                command.add_argument(option, type=type(field.default), default=field.default, help=" ")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        if command == "text":
            Trainer(TrainConfig(**options), Console(stderr=True)).run()
        elif command == "match":
            match(MatchingConfig(**options), Console(stderr=True))
        elif command == "settle":
            settle(SettleConfig(**options), Console(stderr=True))
        else:
            evaluate(EvalConfig(**options), Console(width=110))
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("penstock: stopped; go on with --resume.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
