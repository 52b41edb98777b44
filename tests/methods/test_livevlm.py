"""livevlm against its card: checks (a) to (e), the choice as a walk over lists, and what a question reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from penstock.core import Phase, Span
from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Memory, Sinks, Window
from penstock.methods.livevlm import Bucketed, LiveVLM, bucketed
from tests.memory.stack import Stack, difference, tokens

from .kinds import TEXT, VISION, Mixed
from .retaining import Entry, Loop, held, rounded


def test_composition() -> None:
    assert LiveVLM().cascade(96) == Cascade((Sinks(4), Window(24), Bucketed(60, 0, None, 15, 16, 0.4)), "contiguous", 8)
    assert LiveVLM().cascade(96).entries == 96
    with pytest.raises(BudgetError, match="a budget of 16 has no room beside 4 sinks, 4 recent entries"):
        LiveVLM().cascade(16)
    with pytest.raises(BudgetError, match="needs a budget"):
        LiveVLM().cascade(None)
    for wrong in (LiveVLM(ratio=0), LiveVLM(salient=2), LiveVLM(page=0)):
        with pytest.raises(UsageError, match="pages of 1 entry or more"):
            wrong.cascade(96)


def walk(score: list[float], seen: list[int], count: int, salient: int) -> list[int]:
    """The card's two phases, and the third for what empty buckets leave, one entry after the other."""
    width = (seen[-1] - seen[0] + 1) / count
    of = [int((s - seen[0]) / width + 1e-9) for s in seen]
    ranking = sorted(range(len(seen)), key=lambda i: (score[i], i), reverse=True)
    kept = ranking[:salient]
    taken = {of[i] for i in kept}
    for i in ranking[salient:]:
        if len(kept) < count and of[i] not in taken:
            kept.append(i)
            taken.add(of[i])
    kept += [i for i in ranking if i not in kept][: count - len(kept)]
    return sorted(kept)


@pytest.mark.parametrize("salient", [0, 3, 16])
def test_choice_by_buckets(salient: int) -> None:
    generator = torch.Generator().manual_seed(salient)
    for gaps in (1, 6):
        score = torch.rand(24, generator=generator).round(decimals=1)
        seen = torch.randint(1, gaps + 1, (24,), generator=generator).cumsum(0)
        got = bucketed(score, seen, 16, salient).tolist()
        assert got == walk(score.tolist(), seen.tolist(), 16, salient)
        assert got == sorted(set(got)), "(e) strictly increasing in time"


def test_c_every_bucket_keeps_its_best() -> None:
    """Consecutive tokens, four to a bucket, none salient: one of each, the best one."""
    score = torch.rand(32, generator=torch.Generator().manual_seed(4))
    got = bucketed(score, torch.arange(100, 132), 8, 0)
    assert got.tolist() == [4 * b + int(score[4 * b : 4 * b + 4].argmax()) for b in range(8)]


def test_a_and_b_sizes_and_room() -> None:
    layer = Stack()
    memory = layer.memory(LiveVLM().cascade(48))
    for part in range(20):
        layer.feed(memory, tokens(8, part), 5)
        for lane in memory.groups[0].lanes[0]:
            sinks, recent, rest = (len(state["held"]) for state in lane[0].states)
            assert (sinks, recent) == (4, min(12, 8 * part + 4))
            assert rest == min(24, 8 * part + 8 - sinks - recent)
    stream = tokens(44)
    got = layer.feed(layer.memory(LiveVLM().cascade(48)), stream, 7)
    assert difference(got, layer.expected(stream, Cascade((Window(99),), "stream"))) < 1e-5


@pytest.mark.parametrize("positions", ["contiguous", "stream"])
def test_equals_the_literal_walk(positions: str) -> None:
    """Attention of the unit's queries, averaged over queries and heads, from a loop over one layer."""
    layer, stream = Stack(windows=(None,)), tokens(93, 6)
    sinks, recent, size, salient = 3, 7, 10, 2

    def choose(loop: Loop, heads: Sequence[list[Entry]]) -> Sequence[list[Entry]]:
        old = [entries[: max(0, len(entries) - recent)] for entries in heads]
        if len(old[0]) <= size:
            return heads
        total = [rounded(sum(sum(e.unit.values()) for e in same) / 16) for same in zip(*old)]
        index = walk(total, [e.seen for e in old[0]], size, salient)
        return [[o[i] for i in index] + entries[-recent:] for o, entries in zip(old, heads)]

    memory = layer.memory(Cascade((Sinks(sinks), Window(recent), Bucketed(size, salient=salient)), positions, 4))
    loop = Loop(layer, sinks, 4, positions, choose)
    expected = loop.feed(stream)
    assert difference(layer.feed(memory, stream, 5)[0], expected) < 1e-5
    assert held(memory, 2) == [h[:size] for h in loop.held()]


def ask(layer: Stack, memory: Memory, ids: list[int], chunk: int = 99) -> torch.Tensor:
    """Outputs [N, Hq, D] of a question."""
    outs = []
    for start in range(0, len(ids), chunk):
        part = torch.tensor(ids[start : start + chunk])
        with memory.step([Span(0, len(part))], Phase.ASK) as step:
            query, key, value = (t[0, part].transpose(0, 1)[None] for t in (layer.queries, layer.keys, layer.values))
            outs.append(step.attend(0, query, key, value, scale=layer.scale)[0])
    return torch.cat(outs)


@pytest.mark.parametrize("positions", ["contiguous", "stream"])
def test_d_all_pages_are_everything(positions: str) -> None:
    layer, outs = Stack(windows=(None,)), []
    for ratio, phase in ((1.0, Phase.ASK), (0.4, Phase.INGEST), (0.4, Phase.ASK)):
        memory = layer.memory(LiveVLM(page=4, ratio=ratio, positions=positions).cascade(48))  # type: ignore[arg-type]
        layer.feed(memory, tokens(120))
        outs.append(ask(layer, memory, tokens(5, 1)) if phase == Phase.ASK else layer.feed(memory, tokens(5, 1))[0])
    assert difference(outs[0], outs[1]) < 1e-6
    assert difference(outs[2], outs[1]) > 1e-3


@pytest.mark.parametrize("positions", ["contiguous", "stream"])
def test_a_question_reads_its_best_pages(positions: str) -> None:
    """Each token of it, by arithmetic: the pages with the largest products, numbered without holes."""
    layer = Stack(windows=(None,))
    memory = layer.memory(LiveVLM(page=5, ratio=0.4, positions=positions).cascade(48))  # type: ignore[arg-type]
    stream, question = tokens(120), tokens(6, 1)
    layer.feed(memory, stream, 9)
    sinks, recent, rest = (s["held"].seen[0].tolist() for s in memory.groups[0].lanes[0][0][0].states)
    got = ask(layer, memory, question, 4)
    pages = [rest[i : i + 5] for i in range(0, len(rest), 5)]
    loop = Loop(layer, 0, 1 << 20, positions, lambda _, heads: heads)
    for i in range(len(question)):
        query = layer.queries[0, question[i]].double()  # [Hq, D]

        def product(page: list[int], query: torch.Tensor = query) -> float:
            keys = layer.keys[0, torch.tensor([stream[j] for j in page])].double().mean(0)  # [H, D]
            return float((query.reshape(2, 2, -1).sum(1) * keys).sum())

        chosen = sorted(sorted(pages, key=product, reverse=True)[: math.ceil(0.4 * len(pages))])
        read = [j for page in chosen for j in page]
        new = list(range(120, 121 + i))
        ids = stream + question
        index = sinks + read + recent + new
        first = len(sinks) + len(rest) - len(read)
        at = [*range(len(sinks)), *range(first, first + len(read + recent + new))]
        at = at if positions == "contiguous" else index
        for q in range(4):
            keys = [layer.keys[0, ids[j], q // 2].double() for j in index]
            scores = torch.tensor([loop.product(query[q], k, at[-1] - p) for k, p in zip(keys, at)]).double()
            shares = torch.softmax(scores * layer.scale, 0)
            values = torch.stack([layer.values[0, ids[j], q // 2].double() for j in index])
            assert difference(got[i, q], shares @ values) < 1e-5


def test_the_laws_hold_with_vision_between_words() -> None:
    case = Mixed(LiveVLM(), "llama", (TEXT, VISION, VISION, VISION, *[TEXT] * 12))
    case.check("chunk_invariant", "naive", "steady")


def test_vision_decides_where_there_is_some() -> None:
    """The same stream with another kind for some tokens keeps other entries."""
    kept = []
    for pattern in ((TEXT,), (TEXT, TEXT, VISION, TEXT)):
        case = Mixed(LiveVLM(), "llama", pattern)
        memory = case.memory(entries=48)
        case.feed(memory, torch.arange(120) % 50 + 3)
        kept.append(held(memory, 2))
    assert kept[0] != kept[1]
