"""The training of the tiny monitor (penstock/models/guard.py), and what it is worth.

    python -m penstock.worlds.guard                   trains, measures, writes penstock/models/tiny_guard; half a minute
    python -m penstock.worlds.guard --measure         measures what is there

An answer is 96 tokens of the facts world, or begins so and leaves it for library text at a random place, or is library
text.  A token is bad when it belongs to library text.  Training and measuring use the two sides of the library's
split, and different seeds of the world.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from penstock.errors import PenstockError
from penstock.models.guard import DECAY, HIDDEN, WEIGHTS, Heads, embeddings
from penstock.models.load import TINY
from penstock.worlds.facts import FactsWorld
from penstock.worlds.library import heldout_text, training_text

LENGTH = 96  # tokens of an answer
_STREAM = 400_000  # characters of each kind of text


def _ids(texts: Any) -> Tensor:
    tokenizer, parts, size = AutoTokenizer.from_pretrained(TINY), [], 0
    for text in texts:
        parts.append(text)
        size += len(text)
        if size >= _STREAM:
            break
    return torch.tensor(tokenizer("".join(parts)[:_STREAM], add_special_tokens=False)["input_ids"])


def sources(heldout: bool) -> tuple[Tensor, Tensor]:
    """Token ids of facts and of library text."""
    facts = (passage.text for passage in FactsWorld(977 if heldout else 31).passages())
    texts = list(heldout_text() if heldout else training_text())
    random.Random(5).shuffle(texts)
    return _ids(facts), _ids(text[:4000] for text in texts)


def answers(facts: Tensor, library: Tensor, count: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Token ids [count, LENGTH], and which of them are bad."""
    ids, bad = torch.empty(count, LENGTH, dtype=torch.int64), torch.zeros(count, LENGTH)
    for i in range(count):
        at = LENGTH if i % 3 == 0 else 0 if i % 3 == 1 else rng.randrange(8, LENGTH - 8)
        a, b = rng.randrange(len(facts) - LENGTH), rng.randrange(len(library) - LENGTH)
        ids[i] = torch.cat([facts[a : a + at], library[b : b + LENGTH - at]])
        bad[i, at:] = 1.0
    return ids, bad


def seen(ids: Tensor) -> Tensor:
    """Features [B, T, 3 D] of whole answers: those of `guard.features`, all at once."""
    table, _ = embeddings()
    x = table[ids]
    age = torch.arange(ids.shape[1])[:, None] - torch.arange(ids.shape[1])
    decay = torch.where(age >= 0, (1 - DECAY) * DECAY ** age.clamp(min=0), torch.zeros(()))
    return torch.cat([x, torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1], decay @ x], -1)


def train(steps: int, seed: int = 0) -> Heads:
    """Heads after so many steps of 48 answers."""
    torch.manual_seed(seed)
    facts, library = sources(heldout=False)
    width = 3 * embeddings()[0].shape[1]
    inner = (torch.randn(HIDDEN, width + 1) / width**0.5).requires_grad_()
    outer = (torch.randn(2, HIDDEN + 1) / HIDDEN**0.5).requires_grad_()
    heads, rng = Heads(inner, outer), random.Random(seed)
    optimizer = torch.optim.AdamW([inner, outer], lr=1e-2, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    for _ in range(steps):
        ids, bad = answers(facts, library, 48, rng)
        odds = heads(seen(ids))
        prefix = (bad.cumsum(1) > 0).float()
        f, g = torch.sigmoid(odds[..., 1]), torch.sigmoid(odds[..., 0]).cummax(1).values
        tie = -torch.log((1 - f + f * g).clamp(min=1e-6)).mean()
        total = loss(odds[..., 0], bad) + 0.5 * loss(odds[..., 1], prefix) + 0.1 * tie
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()
    return Heads(inner.detach(), outer.detach())


def stops(scores: Sequence[float], threshold: float = 0.5, need: int = 2, of: int = 2) -> int | None:
    """The token at which a debounce stops, if it does."""
    flags = [score >= threshold for score in scores]
    return next((i for i in range(len(flags)) if sum(flags[max(0, i - of + 1) : i + 1]) >= need), None)


@torch.no_grad()
def measure(heads: Heads, count: int = 900, seed: int = 1) -> dict[str, Any]:
    """Precision and recall over tokens; over answers with a debounce of 2 of 2: false stops, missed ones, delay."""
    facts, library = sources(heldout=True)
    ids, bad = answers(facts, library, count, random.Random(seed))
    scores = torch.sigmoid(heads(seen(ids)))[..., 0]
    flagged = scores >= 0.5
    right = float((flagged & (bad > 0)).sum())
    out: dict[str, Any] = {
        "precision": right / max(1.0, float(flagged.sum())), "recall": right / float(bad.sum()), "tokens": ids.numel(),
    }  # fmt: skip
    clean, late, early, missed, delays = 0, 0, 0, 0, []
    for row, labels in zip(scores.tolist(), bad):
        at, stop = int(labels.argmax()) if bool(labels.any()) else None, stops(row)
        if at is None:
            clean += 1
            late += stop is not None
        elif stop is None:
            missed += 1
        elif stop < at:
            early += 1
        else:
            delays.append(stop - at + 1)
    delays.sort()
    return out | {
        "answers": count, "clean": clean, "clean_stopped": late, "left": count - clean, "left_stopped_early": early,
        "left_missed": missed, "tokens_until_stopped": delays[len(delays) // 2] if delays else None,
    }  # fmt: skip


def save(heads: Heads, path: Path = WEIGHTS) -> None:
    """As float16, with the fingerprint of the embeddings that they read."""
    path.parent.mkdir(exist_ok=True)
    tensors = {"inner": heads.inner.half().contiguous(), "outer": heads.outer.half().contiguous()}
    save_file(tensors, path, metadata={"embeddings": embeddings()[1]})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m penstock.worlds.guard", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=1200, help="steps of the training")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--measure", action="store_true", help="only measure what is there")
    options = parser.parse_args(arguments)
    try:
        from penstock.models.guard import Guard

        began = time.process_time()
        if not options.measure:
            save(train(options.steps, options.seed))
        found = {"seconds": round(time.process_time() - began, 1), "bytes": WEIGHTS.stat().st_size}
        print(json.dumps(found | measure(Guard().heads)))
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
