"""video-streaming against its card: checks (a) to (c), and a literal loop over summaries and choices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from penstock.core import Phase
from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Memory, Sinks, Window
from penstock.methods.video_streaming import Clips, VideoStreaming

from .frames import ALIBI, GROUP, HEADS, WIDTH, blocks, feed, memory, state

CLIP, BUDGET = 8, 64
METHOD = VideoStreaming(CLIP, group=4, chosen=2, stored=6)


def test_composition() -> None:
    clips = Clips(64, 4, 64, 4)
    assert VideoStreaming().cascade(512) == Cascade((Sinks(64), Window(256), clips), "clamped", 64)
    assert clips.entries == 5 * 16
    for budget in (24, 48, 100, 4096):
        assert (VideoStreaming().cascade(budget).entries or 0) <= budget
        assert VideoStreaming().lossless().cascade(budget).entries == budget
    with pytest.raises(BudgetError, match="give at least 17, or smaller clips"):
        VideoStreaming().cascade(16)
    with pytest.raises(BudgetError, match="needs a budget"):
        VideoStreaming().cascade(None)
    with pytest.raises(UsageError, match="make clip a multiple of group, and stored at least chosen"):
        VideoStreaming(stored=3).cascade(96)
    with pytest.raises(UsageError, match="make clip a multiple of group"):
        VideoStreaming(group=3).cascade(96)
    with pytest.raises(UsageError, match=r"decay cannot be 1\.0"):
        VideoStreaming(decay=1.0).cascade(96)


def left(where: Memory) -> int:
    """Clips that have left the window."""
    return int(state(where, 1)["held"].seen[0, 0]) // CLIP - 1


def test_a_the_past_alone_decides() -> None:
    """Summaries, indicators and history of the first clips are the same whatever follows."""
    past, states = blocks(20, CLIP), []
    for seed in (1, 2):
        where = memory(METHOD.cascade(BUDGET))
        feed(where, torch.cat([past, blocks(4, CLIP, seed)], dim=1), chunk=9)
        states.append(state(where, 2))
    assert torch.equal(states[0]["history"].key, states[1]["history"].key)
    assert torch.equal(states[0]["indicators"], states[1]["indicators"])
    assert torch.equal(states[0]["clips"].value, states[1]["clips"].value)


def test_b_a_query_reads_as_much_after_many_clips() -> None:
    where = memory(METHOD.cascade(BUDGET))
    feed(where, blocks(20, CLIP))
    before = where.nbytes
    assert before <= (where.budget_bytes or 0)
    part = where.cascades[0].segments[2]  # type: ignore[union-attr]
    assert isinstance(part, Clips)
    feed(where, blocks(500, CLIP, 1), chunk=640)
    assert where.nbytes == before
    assert len(state(where, 2)["clips"]) == 6 * part.summary
    assert len(state(where, 2)["history"]) == part.summary


def test_c_questions_change_nothing() -> None:
    """What is asked reads the archive and leaves it as it is."""
    where = memory(METHOD.cascade(BUDGET))
    feed(where, blocks(20, CLIP))
    before = dict(state(where, 2))
    for seed in (1, 2):
        mark = where.mark(0, 8)
        feed(where, blocks(1, CLIP, seed)[:, :5], phase=Phase.ASK)
        assert all(state(where, 2)[name] is value for name, value in before.items())
        where.rollback(mark)
        where.commit(mark)


def expected(where: Memory, key: Tensor, query: Tensor) -> Tensor:
    """[Hq, Dv]: what a query [Hq, D] of the next token reads by the card: sinks, window, history, clips that fit."""
    frames = key.split(CLIP, dim=1)
    count = left(where)
    past = [f.unflatten(1, (-1, 4)).mean(2) for f in frames[1 : 1 + count]]  # [H, 2, D] each
    history, weight = past[0], 1.0
    for one in past[1:]:
        weight = 0.9 * weight + 1.0
        history = history + (one - history) / weight
    unit = torch.nn.functional.normalize
    now = unit(query, dim=-1)
    fit = []
    for f in frames[1 : 1 + count]:
        indicator = unit(unit(f, dim=-1).mean(1), dim=-1)
        fit.append(float(sum(now[h] @ indicator[h // GROUP] for h in range(HEADS * GROUP))))
    archive = list(range(max(0, count - 6), count))
    chosen = sorted(archive, key=lambda i: fit[i])[-2:]
    out = []
    position, cap = key.shape[1], (where.cascades[0].entries or 0) - 1
    place = where.groups[0].branches[0][0].place
    for h in range(HEADS * GROUP):
        rows: list[tuple[Tensor, Tensor, float, int]] = []
        g = h // GROUP
        rows += [(key[g, i], key[g, i], 0.0, min(position, cap) - i) for i in range(CLIP)]
        rows += [(key[g, i], key[g, i], 0.0, position - i) for i in range((1 + count) * CLIP, position)]
        rows += [(history[g, i], history[g, i], math.log(4 * weight), cap) for i in range(2)]
        rows += [(past[c][g, i], past[c][g, i], math.log(4), cap) for c in chosen for i in range(2)]
        scores = []
        for k, _, bias, distance in rows:
            turned = place.turn(k[None, None], torch.tensor([[-distance]]))[0, 0]
            scores.append(query[h] @ turned * WIDTH**-0.5 + bias)
        # the query itself
        own = (key.new_tensor(0.0), query[h], query[h] @ query[h] * WIDTH**-0.5)
        weights = torch.stack([*scores, own[2]]).softmax(0)
        values = torch.stack([*(v for _, v, _, _ in rows), own[1]])
        out.append(weights @ values)
    return torch.stack(out)


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_query_reads_what_fits_it(naive: bool, seed: int) -> None:
    """Against a literal loop: chosen clips, the history's mean and weight, distances of all."""
    key, asked = blocks(24, CLIP, seed), blocks(1, 1, 50 + seed)  # [H, 1, D]
    where = memory(METHOD.cascade(BUDGET), naive)
    feed(where, key, chunk=11)
    query = asked.repeat_interleave(GROUP, 0)
    got = feed(where, asked, query=query)[0]
    assert torch.allclose(got, expected(where, key, query[:, 0]), atol=1e-5)


def test_fast_equals_naive_with_alibi() -> None:
    key = blocks(30, CLIP)
    outs = [feed(memory(METHOD.cascade(BUDGET), naive, ALIBI), key, chunk=11) for naive in (False, True)]
    assert torch.allclose(outs[0], outs[1], atol=1e-5)
