"""The `match` stage: from a model that looks facts up by their number to one that tells look-alikes apart.

The model gets heads that read further back (`penstock.worlds.lengthen`), then the second layer learns which statement a
question means (`penstock.worlds.matching`), from rows of look-alikes and library text that must be read as before.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from penstock.errors import UsageError
from penstock.worlds.batches import library_tokens
from penstock.worlds.checkpoint import export
from penstock.worlds.evaluate import load_net
from penstock.worlds.facts import FactsWorld
from penstock.worlds.lengthen import lengthen
from penstock.worlds.matching import MatchConfig, teach
from penstock.worlds.quiet import wait_for_quiet
from penstock.worlds.tokenizer import encode, save_tokenizer
from penstock.worlds.views import Rows

_SAMPLE = 24  # rows on which the new heads are laid out
_TEXT = 384  # tokens of a row of text


@dataclass(frozen=True)
class MatchingConfig(MatchConfig):
    """Options of `match`; every field is a command line option."""

    model: str = "tiny-model"  # the folder that `text` wrote
    out: str = "tiny-matched"  # where the model folder is written
    pool: int = 96  # rows with questions to draw from, and as many rows of text


def match(config: MatchingConfig, console: Console) -> None:
    """Write the matched model; a function of the model, the options and the seed.

    Raises:
        InputError: the folder has no model.
        UsageError: the model was matched before, or the options ask for more rows than there are.
    """
    net, tokenizer = load_net(Path(config.model))
    if net.config.num_attention_heads > 2 * net.config.num_key_value_heads:
        raise UsageError(f"{config.model} has been matched already: name a folder that the text stage wrote.")
    if max(config.rows, config.text_rows) > config.pool or config.steps < 1:
        raise UsageError(
            f"a step cannot draw its rows from a pool of {config.pool}: give --pool more, --steps 1 or more."
        )
    rng = random.Random(f"match:{config.seed}")
    world = FactsWorld(config.seed + 11, density=0.8, sentences=(0, 2))
    rows = Rows(lambda text: encode(tokenizer, text), net.config.max_position_embeddings + 1, world)
    facts = [rows.lookalikes(rng) for _ in range(config.pool)]
    sample = torch.tensor([rows.lookalikes(rng).ids for _ in range(_SAMPLE)])
    library = library_tokens(tokenizer, heldout=False)
    stride = (len(library) - _TEXT) // config.pool
    text = torch.tensor([list(library[i * stride : i * stride + _TEXT]) for i in range(config.pool)])
    net = lengthen(net, sample[:, :-1], config.seed)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("matching", total=config.steps)

        def tick(step: int, contrast: float, divergence: float) -> None:
            bar.update(task, completed=step + 1, description=f"contrast {contrast:.3f} divergence {divergence:.4f}")
            wait_for_quiet()

        teach(net, facts, text, config, tick)
    export(Path(config.out), net)
    save_tokenizer(tokenizer, Path(config.out))
