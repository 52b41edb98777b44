"""Recall rows with one question each, for watching a training and for the evaluation."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import Tensor

from penstock.worlds.facts import FactsWorld
from penstock.worlds.net import FarView, Net
from penstock.worlds.tokenizer import BOS_ID
from penstock.worlds.views import Encoder, Rows, Stream


class Probe(NamedTuple):
    """Rows that end with a question: ids [B, T], the right next token [B], where the statement began [B] (0 to T-1)."""

    tokens: Tensor
    answers: Tensor
    starts: Tensor


def contiguous(encode: Encoder, context: int, num_rows: int, seed: int, bos: bool = True) -> Probe:
    """Streams of `context` tokens, question included; the asked fact stands anywhere, uniformly over the facts."""
    rng = random.Random(f"probe:{seed}")
    rows = Rows(encode, context, FactsWorld(seed, density=0.8, sentences=(0, 3)), near_misses=0.0)
    made: list[tuple[list[int], int, int]] = []
    while len(made) < num_rows:
        stream = Stream([BOS_ID] if bos else [])
        while len(stream.ids) < context + 40:
            rows.extend(stream, rng)
        question = encode(stream.facts[0].fact.question)
        room = context - len(question)
        cut = 0 if bos else rng.randrange(30)
        seen = [placed for placed in stream.facts if cut <= placed.start and placed.end <= cut + room]
        if not seen:
            continue
        placed = rng.choice(seen)
        ids = stream.ids[cut : cut + room] + encode(placed.fact.question)
        if len(ids) == context:
            made.append((ids, encode(placed.fact.answer)[0], placed.start - cut))
    return Probe(*(torch.tensor(column) for column in zip(*made)))


def scattered(encode: Encoder, context: int, num_rows: int, seed: int, window: int, block: int = 32) -> Probe:
    """Sinks, far blocks and a window, numbered contiguously; the asked fact stands whole in one of the far blocks."""
    rng = random.Random(f"scattered:{seed}")
    rows = Rows(encode, context, FactsWorld(seed, density=0.8, sentences=(0, 3)), near_misses=0.0)
    made: list[tuple[list[int], int, int]] = []
    while len(made) < num_rows:
        stream = Stream([BOS_ID])
        while len(stream.ids) < context * 4:
            rows.extend(stream, rng)
        question = encode(stream.facts[0].fact.question)
        begin = len(stream.ids) - window
        num_blocks, spare = divmod(context - window - len(question) - 4, block)
        far = [placed for placed in stream.facts if placed.start > 4 + block and placed.end < begin - block]
        placed = rng.choice(far)
        home = placed.start - rng.randint(0, block - (placed.end - placed.start))
        starts = [home]
        while len(starts) < num_blocks:
            start = rng.randrange(4, begin - block)
            if all(abs(start - other) >= block for other in starts):
                starts.append(start)
        starts.sort()
        num_sinks = 4 + spare
        if starts[0] < num_sinks:
            continue
        ids = stream.ids[:num_sinks] + [token for start in starts for token in stream.ids[start : start + block]]
        at = num_sinks + starts.index(home) * block + placed.start - home
        ids += stream.ids[begin:] + encode(placed.fact.question)
        if len(ids) == context:
            made.append((ids, encode(placed.fact.answer)[0], at))
    return Probe(*(torch.tensor(column) for column in zip(*made)))


@torch.no_grad()
def hits(net: Net, probe: Probe, view: FarView | None = None, rows_per_step: int = 16) -> Tensor:
    """[B] bool: whether the most likely next token is the answer."""
    found = []
    for at in range(0, len(probe.tokens), rows_per_step):
        part = slice(at, at + rows_per_step)
        mine = view
        if view is not None and view.visible.dim() == 3:
            mine = FarView(*(tensor[part] for tensor in view))
        found.append(net(probe.tokens[part], mine)[:, -1].argmax(-1) == probe.answers[part])
    return torch.cat(found)
