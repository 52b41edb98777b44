"""What one training step sees: rows of several kinds, each kind with its share of the loss."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from penstock.worlds.facts import FactsWorld
from penstock.worlds.library import heldout_text, training_text
from penstock.worlds.net import FarView, clamped_view
from penstock.worlds.tokenizer import EOS_ID, encode
from penstock.worlds.views import Row, Rows

# rows of each kind in a step, and the share of the loss that the kind has
LOOKUP = {"stream": (0.375, 0.4), "scattered": (0.125, 0.1), "copy": (0.5, 0.5)}
MIXED = {"text": (0.625, 1.0), "stream": (0.125, 0.4), "scattered": (0.125, 0.4), "copy": (0.125, 0.1)}


class Batch(NamedTuple):
    """Tokens [B, T+1], weights [B, T] of predicting tokens 1 .. T (they sum to about 1), and how keys are read.

    `is_text` [B] marks the rows of library text, for the log.
    """

    tokens: Tensor
    weights: Tensor
    view: FarView | None
    is_text: Tensor


def library_tokens(tokenizer: Tokenizer, heldout: bool) -> array[int]:
    """One side of the library text as ids, documents separated by EOS."""
    ids = array("H")
    for text in heldout_text() if heldout else training_text():
        ids.extend(encode(tokenizer, text))
        ids.append(EOS_ID)
    return ids


class Batches:
    """Batches as a function of seed and step.

    Args:
        tokenizer: the tokenizer of the model.
        text: training text as ids.
        seed: of everything random.
    """

    def __init__(self, tokenizer: Tokenizer, text: Sequence[int], seed: int) -> None:
        self.tokenizer = tokenizer
        self.text = text
        self.seed = seed
        self.passages = 0

    def _filler(self, rng: random.Random) -> str:
        at = rng.randrange(len(self.text) - 64)
        piece = self.text[at : at + rng.randint(8, 48)]
        words = self.tokenizer.decode(list(piece), skip_special_tokens=True).replace("\ufffd", "").strip()
        return words or "Nothing happened."

    def make(self, step: int, context: int, num_tokens: int, mixed: bool, clamped: bool) -> Batch:
        """The batch of a step: `num_tokens` predicted tokens in rows of `context`."""
        rng = random.Random(f"batch:{self.seed}:{step}")
        world = FactsWorld(
            seed=self.seed + 7,
            density=rng.choice((0.5, 0.8, 1.0)),
            sentences=(0, rng.choice((1, 2, 3))),
            filler=self._filler if mixed else None,
            filler_share=rng.choice((0.0, 0.3, 0.8)),
        )
        rows = Rows(lambda text: encode(self.tokenizer, text), context + 1, world, next_passage=self.passages)
        made: list[tuple[Row, float, bool]] = []
        total = max(4, num_tokens // context)
        for kind, (share, loss_share) in (MIXED if mixed else LOOKUP).items():
            number = max(1, round(total * share))
            group = [self._row(rows, kind, rng) for _ in range(number)]
            weight = sum(sum(row.weights[1:]) for row in group) or 1.0
            made += [(row, loss_share / weight, kind == "text") for row in group]
        self.passages = rows.next_passage
        tokens = torch.tensor([row.ids for row, _, _ in made])
        weights = torch.tensor([[w * scale for w in row.weights[1:]] for row, scale, _ in made])
        view = None
        if clamped:
            local = torch.tensor([rng.choice((32, 64, 96, 128, 192, 256, 320)) for _ in made])
            view = clamped_view(context, local)
        return Batch(tokens, weights, view, torch.tensor([is_text for _, _, is_text in made]))

    def _row(self, rows: Rows, kind: str, rng: random.Random) -> Row:
        with_start = rng.random() < 0.7
        if kind == "text":
            return rows.text(rng, self.text, with_start)
        if kind == "copy":
            return rows.copy(rng, self.text)
        if kind == "scattered" and rows.length > 100:
            return rows.scattered(rng, with_start)
        return rows.stream(rng, with_start)
