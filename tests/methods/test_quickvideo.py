"""quickvideo against its card: checks (a), (b), (d), by kinds that the tests provide."""

from __future__ import annotations

import pytest
import torch

from penstock.core import Kind
from penstock.errors import BudgetError, CompositionError, UsageError
from penstock.memory import Cascade, Sinks, Window
from penstock.methods.quickvideo import QuickVideo, Thinned
from penstock.testing import tiny_tokens
from tests.memory.stack import Stack, tokens

from .kinds import TEXT, VISION, Alone, Mixed, random_kinds
from .retaining import held, rounded
from .running import Running
from .running import difference as logits_difference

ALL = QuickVideo(kinds="all")
GROUP = 8


def test_composition() -> None:
    vision = Thinned(64, 0.25, Kind.VISION)
    assert QuickVideo().cascade(64) == Cascade((Sinks(4), vision, Window(44)), "stream", 16)
    assert ALL.cascade(64).segments[1] == Thinned(64, 0.25, None)
    assert QuickVideo().cascade(64).entries == 64
    with pytest.raises(BudgetError, match="give at least 21"):
        QuickVideo().cascade(20)
    with pytest.raises(BudgetError, match="needs a budget"):
        QuickVideo().cascade(None)
    with pytest.raises(CompositionError, match="power of two"):
        QuickVideo(group=9).cascade(64)
    for wrong in (QuickVideo(top_p=0), QuickVideo(top_p=1.5), QuickVideo(top_k=0)):
        with pytest.raises(UsageError, match="keeps at least one token"):
            wrong.cascade(64)


@pytest.mark.parametrize("top", [GROUP, 64])
def test_a_a_group_that_stays_whole_is_dense(top: int) -> None:
    model, stream = Running.of("llama"), tiny_tokens(60)
    memory = model.memory(f"quickvideo:kinds=all,group={GROUP},top_p=1.0,top_k={top}", 80)
    assert logits_difference(model.feed(memory, stream, 7), model.native(stream)) < 1e-5
    plain = Stack()
    whole = plain.memory(QuickVideo(group=GROUP, top_k=top, top_p=1.0, kinds="all").cascade(80))
    windowed = plain.memory(Cascade((Sinks(4), Window(68)), "stream", GROUP))
    for each in (whole, windowed):
        plain.feed(each, tokens(64), 5)
    a, b = (memory.groups[0].lanes[0][0][0].states for memory in (whole, windowed))
    assert torch.equal(a[0]["held"].key, b[0]["held"].key)
    assert torch.equal(a[2]["held"].key, b[1]["held"].key)


@pytest.mark.parametrize(("top_k", "top_p"), [(2, 1.0), (64, 0.25), (3, 0.5), (1, 0.01)])
def test_b_and_d_text_stays_and_groups_are_thinned(top_k: int, top_p: float) -> None:
    """Against a loop over groups: the lowest norms of all heads together, in order, at their own indices."""
    method = QuickVideo(sinks=0, group=GROUP, top_k=top_k, top_p=top_p)
    alone = Alone(method.cascade(400))
    kinds = random_kinds(200, 3, frame=5)[:200]
    keys = torch.randn(2, 200, 4, generator=torch.Generator().manual_seed(1))
    expected = []
    for start in range(0, 200, GROUP):
        index = range(start, start + GROUP)
        alone.feed(keys[:, start : start + GROUP], kinds[start : start + GROUP])
        vision = [i for i in index if kinds[i] == VISION]
        count = max(1, min(top_k, int(len(vision) * top_p)))
        stays = sorted(vision, key=lambda i: (rounded(float(keys[:, i].norm())), -i))[:count]
        expected += [i for i in index if kinds[i] != VISION or i in stays]
    assert alone.held() == [[], [], expected]
    window = alone.states[2]["held"]
    assert window.seen.tolist() == [expected] * 2
    assert torch.equal(window.key, keys[:, expected])
    text = int((kinds != VISION).sum())
    assert len(window) <= text + 200 // GROUP * max(1, top_k)


def test_what_is_left_reaches_further_back() -> None:
    layer = Stack(windows=(None,))
    memory = layer.memory(QuickVideo(sinks=4, group=GROUP, kinds="all").cascade(32))
    layer.feed(memory, tokens(160), 9)
    kept = held(memory, 2)[0]
    assert len(kept) == 20
    assert kept[0] < 160 - 3 * 20


def test_the_laws_hold_with_vision_between_words() -> None:
    Mixed(QuickVideo(group=GROUP), "llama", (TEXT, VISION, VISION, VISION)).check("chunk_invariant", "naive", "steady")
