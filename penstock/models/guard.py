"""A trained monitor that stops an answer which leaves its subject: two small heads on the tokens of the answer.

The shipped one was trained by `python -m penstock.worlds.guard` to tell the facts world from library text: an answer
about facts that goes on into source code is cut.  After SCM (arXiv:2506.09996): a score per token, a verdict on the
prefix, a loss that ties both; after Qwen3Guard-Stream (arXiv:2510.14276): a token alone stops nothing (`Debounce`).
Differs from both: no language model of its own; a token is its embedding in the shipped model, the one before it, and a
running mean, so that a step costs 10 thousand multiplications, and the state is two vectors.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from penstock.errors import InputError
from penstock.models.load import TINY
from penstock.models.text import TextEncoder

WEIGHTS = Path(__file__).parent / "tiny_guard" / "guard.safetensors"
DECAY = 0.8  # of the running mean
HIDDEN = 8


@dataclass(frozen=True)
class Heads:
    """`inner` [HIDDEN, 3 D + 1], `outer` [2, HIDDEN + 1]: token and prefix; the last column is what is added."""

    inner: Tensor
    outer: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """[..., 3 D] -> the logarithm of the odds of (token, prefix), [..., 2]."""
        hidden = torch.relu(features @ self.inner[:, :-1].T + self.inner[:, -1])
        return hidden @ self.outer[:, :-1].T + self.outer[:, -1]


def features(embedded: Tensor, mean: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings [T, D] behind a running mean [D] and a last embedding [D] -> features [T, 3 D], the next mean."""
    means = []
    for x in embedded:
        mean = DECAY * mean + (1 - DECAY) * x
        means.append(mean)
    shifted = torch.cat([before[None], embedded[:-1]])
    return torch.cat([embedded, shifted, torch.stack(means)], -1), mean


@cache
def embeddings() -> tuple[Tensor, str]:
    """The token embeddings of the shipped model, scaled to unit variance, and their fingerprint."""
    with safe_open(TINY / "model.safetensors", "pt") as file:
        table = file.get_tensor("model.embed_tokens.weight").float()
    return table / table.std(), hashlib.blake2b(table.numpy().tobytes(), digest_size=8).hexdigest()


class Guard:
    """A monitor for `Live` and the watcher: `score(text, token)` of a growing answer.

    It reads text with the tokens of the shipped model, whatever model writes it; what later text may still change is
    held back, and None is returned as long as nothing is new.
    """

    def __init__(self, weights: Path = WEIGHTS) -> None:
        self._table, print_ = embeddings()
        try:
            with safe_open(weights, "pt") as file:
                made_for = (file.metadata() or {}).get("embeddings")
            found = load_file(weights)
            self.heads = Heads(found["inner"].float(), found["outer"].float())
        except Exception as error:  # safetensors raises its own type
            raise InputError(f"the monitor {weights} cannot be read ({error}): install penstock again.") from None
        if made_for != print_:
            raise InputError(f"the monitor {weights} is for other embeddings: run python -m penstock.worlds.guard.")
        self._tokenizer = AutoTokenizer.from_pretrained(TINY)
        self.start()

    def start(self) -> None:
        """A new answer."""
        self._text, self._encoder = "", TextEncoder(self._tokenizer, bos=False)
        self._mean = self._before = torch.zeros(self._table.shape[1])

    def tokens(self, ids: list[int]) -> tuple[list[float], float]:
        """Scores of the next tokens, and the verdict on all so far, each 0 to 1."""
        embedded = self._table[torch.tensor(ids)]
        x, self._mean = features(embedded, self._mean, self._before)
        self._before = embedded[-1]
        odds = torch.sigmoid(self.heads(x))
        return odds[:, 0].tolist(), float(odds[-1, 1])

    def score(self, text: str, token: int) -> float | None:
        """How far the newest whole words of an answer `text` are from the subject, 0 to 1; `token` is not looked at."""
        fresh, self._text = text[len(self._text) :], text
        ids = self._encoder.feed(fresh)
        if not ids:
            return None
        scores, _ = self.tokens(ids)
        return sum(scores) / len(scores)


def logic(f: float, g: float) -> float:
    """SCM's tie of both heads: -log(1 - f + f g), with the verdict f and the worst token g."""
    return -math.log(max(1 - f + f * g, 1e-30))
