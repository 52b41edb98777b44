"""The laws, each a function over a case that raises AssertionError where the case breaks it.

A law that compares logits returns the largest difference it saw, relative to max(1, largest logit).
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from penstock.core import Budget
from penstock.memory import Alibi, Memory
from penstock.methods.base import entries_for
from penstock.testing import tiny_tokens

from .cases import LENGTH, Case, same
from .elsewhere import elsewhere
from .measure import Live, Operations, storage, watched

MIXTURES = ("gpt_oss",)  # experts multiply the tokens of a step that chose them together, whatever the attention
ROUND = 256  # every unit divides it
FAR = 192 * ROUND


# -- bytes ------------------------------------------------------------------------------------------------------------


def bounded(case: Case) -> None:
    """Stored bytes equal the real storage and never exceed the budget; step-local bytes never exceed budget + chunk."""
    memory = case.memory(rows=2)
    for i, count in enumerate((1, 7, 64, 3, 1, 1)):
        case.step(memory, {0: tiny_tokens(count, i), 1: tiny_tokens(1 + 2 * count, i)})
        _stored(memory)
        mark = memory.mark(0, max_new=80)
        _stored(memory)
        case.feed(memory, tiny_tokens(9, i), 4)
        _stored(memory)
        memory.commit(mark, 0) if i % 2 else memory.rollback(mark, 0)
        if i % 2 == 0:
            memory.commit(mark, 0)
        _stored(memory)
    memory.copy_row(0, memory, 1)
    memory.reset(0)
    _stored(memory)
    single = case.memory().budget_bytes
    assert memory.budget_bytes == 2 * (single or 0), "a row costs what another row costs"
    for size in (single or 0, (single or 0) * 5 + 17):  # a budget in bytes holds as given
        entries = entries_for(case.method, case.model.geometry, Budget(bytes=size))
        assert storage(case.memory(entries=entries)) <= size
    for entries in (case.budget or 0, 200) if case.is_simple else (200,):
        for count in (1, 7, 64) if case.is_simple else (1, 64):
            _transient(case, entries, count)


def _stored(memory: Memory) -> None:
    real, told = storage(memory), memory.nbytes + memory.ram_bytes
    assert told == real, f"nbytes and ram_bytes say {told}, the storage has {real}"
    assert memory.budget_bytes is not None
    assert memory.nbytes <= memory.budget_bytes, f"{memory.nbytes} bytes stored in a budget of {memory.budget_bytes}"
    for limit in [tiers for cascade in memory.cascades for tiers in cascade.tiers][:1]:
        assert memory.ram_bytes <= limit.ram, f"{memory.ram_bytes} bytes of main memory, over {limit.ram}"
        assert memory.disk_bytes <= limit.disk, f"{memory.disk_bytes} bytes of disk, over {limit.disk}"


def _transient(case: Case, entries: int, count: int) -> None:
    """Peak of the bytes that the memory's own code holds at once within a step (scratch of fused kernels is not seen).

    Layers run one after the other, so the budget is that of the largest layer.  A token of the chunk counts with its
    entries in all layers, its query and answer in one (four copies in float32), and 16 bytes per key that it might
    see: a mask and the two index tables it is made of, for each head where the bias differs by head.
    """
    geometry, cascades = case.model.geometry, case.method.cascades(case.model.geometry, entries)
    memory = case.memory(entries=entries)
    case.feed(memory, tiny_tokens(2 * entries + 20), 64)
    live, archived = Live(), memory.ram_bytes
    with watched(memory, live):
        case.step(memory, {0: tiny_tokens(count, 1)})
    live.peak -= memory.ram_bytes - archived  # what an archive took for good has a limit of its own
    live.peak -= 2 * sum(pool.table_bytes for pool in memory._pools())  # and its choice looks at all its summaries
    sizes = [ly.entry_bytes(geometry.dtype) for ly in geometry.layers]
    budget = max(size * (c.entries or 0) for size, c in zip(sizes, cascades))
    if not all(
        c.is_simple for c in cascades
    ):  # what a moving unit stores anew is counted too: all layers, and one twice
        budget = 2 * budget + (memory.budget_bytes or 0)
    heads = max(ly.query_heads if isinstance(ly.encoding, Alibi) else 1 for ly in geometry.layers)
    wide = max(4 * ly.query_heads * (ly.key_width + ly.value_width) for ly in geometry.layers)
    chunk = count * (sum(sizes) + 4 * wide + 16 * heads * (entries + count))
    assert live.peak <= budget + chunk, f"a step of {count} holds {live.peak} bytes: over {budget} + {chunk}"


def grows(case: Case) -> None:
    """What it says is what it stores, and it stores everything: a fixed number of bytes per token, within doubling."""
    memory = case.memory()
    entry = sum(ly.entry_bytes(case.model.geometry.dtype) for ly in case.model.geometry.layers if ly.window is None)
    limit = case.model.geometry.max_positions or 1000
    for i in range(1, min(600, limit) // 50):
        case.feed(memory, tiny_tokens(50, i), 50)
        assert memory.nbytes == storage(memory)
        assert memory.nbytes >= 50 * i * entry
    assert memory.budget_bytes is None


# -- outputs ----------------------------------------------------------------------------------------------------------


def exact_when_large(case: Case) -> float:
    """With room for the whole stream (and one unit, where a memory moves by units), all is as in full attention."""
    tokens, worst = tiny_tokens(61, 4), 0.0
    with case.model.native(), torch.no_grad():
        expected = case.model.hf(input_ids=tokens[None], use_cache=False).logits[0]
    lossless = case.lossless()
    for entries in (lossless.roomy(61), 300):
        for chunk in case.chunks if entries != 300 else case.chunks[1::2]:
            got = lossless.feed(lossless.memory(entries=entries), tokens, chunk)
            worst = max(worst, same(got, expected))
    return worst


def chunk_invariant(case: Case) -> float:
    """Steps of 1, 7, 64 tokens, and mixtures, give what one step gives."""
    tokens, worst = tiny_tokens(LENGTH, 5), 0.0
    whole = case.feed(case.memory(), tokens)
    for chunk in case.chunks[:-1]:
        worst = max(worst, same(case.feed(case.memory(), tokens, chunk), whole))
    unit = getattr(case.method, "alignment", 1)
    memory, cuts = case.memory(), [unit * n for n in (1, 1, 30, 1, 2, 50, 1)]
    parts = [part for part in tokens.split([*cuts, LENGTH - sum(cuts)] if sum(cuts) < LENGTH else unit) if len(part)]
    got = torch.cat([case.feed(memory, part) for part in parts])
    return max(worst, same(got, whole))


def naive(case: Case) -> float:
    """The fast memory answers as its specification, on mixed steps of two rows."""
    worst, streams = 0.0, [tiny_tokens(90, row) for row in (0, 1)]
    fast, slow = case.memory(2), case.memory(2, naive=True)
    for lengths in ((40, 3), (1, 1), (1, 30), (9, 1), (1, 1), (30, 2)):
        packed = {row: streams[row][:count] for row, count in enumerate(lengths)}
        streams = [stream[count:] for stream, count in zip(streams, lengths)]
        got, expected = case.step(fast, packed), case.step(slow, packed)
        worst = max(worst, *(same(got[row], expected[row]) for row in packed))
    return worst


def causal(case: Case) -> None:
    """Tokens to come change no logits already given: not their values, not how many there are, at no cut."""
    prefix, ahead = tiny_tokens(50, 6), getattr(case.method, "look_ahead", 0)
    futures = [tiny_tokens(30, 7), tiny_tokens(30, 8), tiny_tokens(2, 9)]
    for chunk in case.chunks if case.is_simple else case.chunks[1::2]:
        given = [case.feed(case.memory(), torch.cat((prefix, future)), chunk)[: 50 - ahead] for future in futures]
        if case.family not in MIXTURES:
            assert torch.equal(given[0], given[1])  # bit by bit: not even a weight of 1e-9 leaks
        same(given[1], given[0])
        same(given[2], given[0])  # a shorter step may take another kernel


def rows_independent(case: Case) -> float:
    """A row answers as it does alone, beside rows at other positions and in other phases that join, leave, reset."""
    rows, worst = 4, 0.0
    together = case.memory(rows)
    alone: list[Memory] = [case.memory() for _ in range(rows)]
    schedule: list[dict[int, int]] = [
        {0: 30},  # one row reads
        {0: 1, 2: 17},  # another joins: one decodes, one reads
        {2: 1, 0: 1},  # in another order
        {0: 1, 1: 1, 2: 1},  # three adjacent rows decode, one of them from nothing
        {3: 64, 1: 1, 0: 5, 2: 1},  # all phases in one step
        {0: 1, 1: 1, 2: 1, 3: 1},
        {1: 40, 2: 1},  # some sit out
        {0: 1, 1: 1, 2: 1, 3: 1},
    ]
    for turn, packed in enumerate([*schedule, *schedule[: 8 if case.is_simple else 3]]):
        if turn == 6:
            together.reset(2)
            alone[2] = case.memory()
        if turn == 9:
            together.copy_row(3, together, 1)  # leaves, and another takes its place
            alone[1] = case.memory()
            alone[3].copy_row(0, alone[1], 0)
        fed = {row: tiny_tokens(count, 100 * turn + row) for row, count in packed.items()}
        got = case.step(together, fed)
        for row, tokens in fed.items():
            worst = max(worst, same(got[row], case.step(alone[row], {0: tokens})[0]))
    return worst


def forkable(case: Case) -> float:
    """A fork and its original go on as if the other did not exist, in the same memory and in another."""
    past, worst = tiny_tokens(45, 10), 0.0
    memory, other = case.memory(2), case.memory()
    case.feed(memory, past[:40], 7)
    case.feed(memory, past[40:], 1)
    memory.copy_row(0, memory, 1)
    memory.copy_row(0, other, 0)
    futures = [tiny_tokens(40, seed) for seed in (11, 12, 13)]
    lives = [(memory, 0), (memory, 1), (other, 0)]
    got: list[list[Tensor]] = [[], [], []]
    for start in range(0, 40, 8):  # in turns, so that each could disturb the others
        for i, (where, row) in enumerate(lives):
            got[i].append(case.feed(where, futures[i][start : start + 8], 1 if start % 16 else None, row))
    for i in range(3):
        alone = case.memory()
        case.feed(alone, past, 7)
        worst = max(worst, same(torch.cat(got[i]), case.feed(alone, futures[i], 8)))
    return worst


# -- repetition -------------------------------------------------------------------------------------------------------


def resumable(case: Case) -> None:
    """Saved, loaded in a new process, continued there: the same bits as going on here."""
    tokens = tiny_tokens(120, 14)
    with tempfile.TemporaryDirectory() as folder:
        every = ((3, 13, 1), (77, 13, 1), (77, 1, 7), (90, 1, None))
        for length, cut, chunk in every if case.is_simple else ((77, 13, 7),):
            memory = case.memory()
            case.feed(memory, tokens[:length], cut)  # a step of one may leave other traces than a longer one
            saved = Path(folder) / f"{length}-{cut}-{chunk}"
            save_file({name: t.contiguous() for name, t in memory.save_row().items()}, saved)
            there = elsewhere().continues(case.id, saved, length, tokens[length:], chunk)
            here = case.feed(memory, tokens[length:], chunk)
            assert torch.equal(there, here), f"after {length} tokens in steps of {cut}, in steps of {chunk}"


def deterministic(case: Case) -> None:
    """The same chunks give the same bits, whatever the global random state, and that state is left alone."""
    tokens, outs = tiny_tokens(80, 15), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1])
        outs.append(torch.cat([case.feed(memory := case.memory(), tokens[:50], 7), case.feed(memory, tokens[50:], 1)]))
        after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1])
        assert torch.equal(before[0], after[0])
        assert before[1] == after[1]
        assert (before[2] == after[2]).all()
    assert torch.equal(outs[0], outs[1])


def steady(case: Case) -> None:
    """A step at position 50,000 runs the operations of one at 500, on as many numbers, and holds as many bytes."""
    memory = case.memory()
    case.feed(memory, tiny_tokens(500), 64)
    costs = []
    for _ in range(2):
        cost: list[object] = []
        for count in (1, 7, 64, 1, 1):  # wherever the ring happens to wrap
            counter, live = Operations(), Live()
            with counter:
                case.step(memory, {0: tiny_tokens(count, 1)})
            with watched(memory, live):
                case.step(memory, {0: tiny_tokens(count, 2)})
            cost.append((counter.counts, live.peak))
        costs.append(cost)
        if len(costs) == 1:
            case.feed(memory, tiny_tokens(ROUND - 2 * 74), 64)  # units begin where they began
            memory.shift(FAR)
    assert memory.length() > FAR
    assert costs[0] == costs[1]


LAWS: dict[str, Callable[[Case], float | None]] = {
    law.__name__: law  # type: ignore[attr-defined]
    for law in (
        bounded,
        grows,
        exact_when_large,
        chunk_invariant,
        causal,
        rows_independent,
        resumable,
        forkable,
        steady,
        deterministic,
    )
}
