"""astra against its card: a constant number of entries, order in time, and a literal loop over the tiers."""

from __future__ import annotations

import math

import pytest
import torch

from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Sinks, Window
from penstock.methods.astra import Astra, Pooled

from .frames import ALIBI, blocks, feed, lane, memory, state

FRAME, BUDGET = 4, 64
METHOD = Astra(frame=FRAME, mid=4, far=8)


def test_composition() -> None:
    assert Astra().cascade(512) == Cascade((Sinks(32), Window(296), Pooled(69, 8), Pooled(69, 8)), "contiguous", 32)
    for budget in (48, 96, 100, 512, 4096):
        assert Astra().cascade(budget).entries == budget
        assert Astra().lossless().cascade(budget).entries == budget
    with pytest.raises(BudgetError, match=r"no room for a frame of 4 beside 1 first ones .* give at least 28"):
        Astra().cascade(24)
    with pytest.raises(UsageError, match="make far a multiple of mid"):
        Astra(mid=8, far=12).cascade(96)
    with pytest.raises(UsageError, match=r"a share between 0 and 0\.5"):
        Astra(share=0.5).cascade(96)


def test_constant_number_of_entries_in_order_of_time() -> None:
    """The same at segment 20 and segment 1000; tiers are older the coarser they are, the newest frame is whole."""
    where, counts = memory(METHOD.cascade(BUDGET)), []
    for i in range(100):
        feed(where, blocks(10, FRAME, i))
        parts = [state(where, p)["held"] for p in range(4)]
        counts.append([len(p) for p in parts])
        sinks, near, middle, far = (p.seen[0] for p in parts)
        assert sinks.tolist() == [0, 1, 2, 3]
        assert near[-1] == 40 * i + 39
        assert near.tolist() == list(range(int(near[0]), 40 * i + 40))
        if i > 4:
            assert torch.cat([sinks, far, middle, near]).diff().min() > 0
    assert counts[-1] == counts[20]


def test_tiers_are_means_of_what_left() -> None:
    """A literal loop: every tier's means, from the raw keys of the whole stream."""
    where, key = memory(METHOD.cascade(BUDGET)), blocks(60, FRAME)
    value = blocks(60, FRAME, 9)
    feed(where, key, value, chunk=7)
    near, middle, far = (state(where, p)["held"] for p in (1, 2, 3))
    newest = int(near.seen[0, 0]) - 1  # the newest entry that left the window
    waiting = (newest + 1 - FRAME) % 4
    size = METHOD.cascade(BUDGET).segments[2]
    assert isinstance(size, Pooled)
    assert len(middle) == size.size + waiting
    for part, group, rest in ((middle, 4, waiting), (far, 8, int(state(where, 3)["waiting"]))):
        for i in range(len(part) - rest):
            last = int(part.seen[0, i])
            span = slice(last - group + 1, last + 1)
            assert torch.allclose(part.key[:, i], key[:, span].mean(1), atol=1e-6)
            assert torch.allclose(part.value[:, i], value[:, span].mean(1), atol=1e-6)
            assert part.bias[0, i].item() == pytest.approx(math.log(group))
    held = torch.cat([far.seen[0, : len(far) - int(state(where, 3)["waiting"])], middle.seen[0]])
    assert held[-1] == newest
    assert lane(where).start == 60 * FRAME


@pytest.mark.parametrize("encoding", [ALIBI, None])
def test_fast_equals_naive_without_rotary_keys(encoding: object) -> None:
    key = blocks(40, FRAME)
    outs = [feed(memory(METHOD.cascade(BUDGET), naive, encoding), key, chunk=11) for naive in (False, True)]  # type: ignore[arg-type]
    assert torch.allclose(outs[0], outs[1], atol=1e-5)
