"""infinite-vggt against its card: checks (a) to (d), and the choice in plain arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from penstock.errors import BudgetError, CompositionError
from penstock.memory import Cascade, Sinks, Window
from penstock.methods.infinite_vggt import InfiniteVGGT, Unlike
from tests.memory.stack import Stack, difference, tokens

from .kinds import Alone
from .retaining import Entry, Loop, held, highest


def test_composition() -> None:
    assert InfiniteVGGT().cascade(64) == Cascade((Sinks(8), Unlike(48, 8)), "contiguous", 8)
    assert InfiniteVGGT(frame=4, recent=0).cascade(64) == Cascade((Sinks(4), Unlike(56)), "contiguous", 4)
    with pytest.raises(BudgetError, match="give at least 17"):
        InfiniteVGGT().cascade(16)
    with pytest.raises(BudgetError, match="needs a budget"):
        InfiniteVGGT().cascade(None)
    with pytest.raises(CompositionError, match="power of two"):
        InfiniteVGGT(frame=6).cascade(64)


def test_a_and_c_the_budget_holds_after_every_frame_and_anchors_stay() -> None:
    layer = Stack()
    memory = layer.memory(InfiniteVGGT(frame=4, recent=0).cascade(30))
    for frame in range(30):
        layer.feed(memory, tokens(4, frame))
        for lane in memory.groups[0].lanes[0]:
            anchors, rest = (state["held"] for state in lane[0].states)
            assert anchors.seen.tolist() == [[0, 1, 2, 3]] * 2
            assert len(anchors) + len(rest) == min(4 * frame + 4, 26)


@pytest.mark.parametrize("positions", ["contiguous", "stream"])
def test_b_nothing_is_pruned_while_there_is_room(positions: str) -> None:
    layer, stream = Stack(), tokens(56)
    method = InfiniteVGGT(recent=0, positions=positions)  # type: ignore[arg-type]
    got = layer.feed(layer.memory(method.cascade(64)), stream, 7)
    assert difference(got, layer.expected(stream, Cascade((Window(99),), "stream"))) < 1e-5


def test_d_copies_leave_before_what_is_unlike_them() -> None:
    """Sixteen copies of one key among eight keys that point elsewhere: all eight stay."""
    alone = Alone(Cascade((Unlike(12),), "contiguous", 8), heads=1, width=16)
    different = torch.eye(16)[1:9]
    same = torch.eye(16)[:1].expand(16, -1)
    keys = torch.cat([same[:8], different[:4], same[8:], different[4:]])
    for part in keys.split(8):
        alone.feed(part[None], torch.zeros(8))
    assert {8, 9, 10, 11, 20, 21, 22, 23} < set(alone.held()[0])
    assert alone.held()[0][-8:] == [16, 17, 18, 19, 20, 21, 22, 23], "of equal copies the newest are left"


@pytest.mark.parametrize("recent", [0, 4])
def test_equals_the_literal_choice(recent: int) -> None:
    layer, stream = Stack(windows=(None,)), tokens(92, 5)

    def choose(loop: Loop, heads: Sequence[list[Entry]]) -> Sequence[list[Entry]]:
        if len(heads[0]) <= 18:
            return heads
        out = []
        for entries in heads:
            units = {e: e.key / e.key.norm() for e in entries}
            mean = torch.stack(list(units.values())).mean(0)
            unlike = {e: -float(unit @ mean / mean.norm()) for e, unit in units.items()}
            out.append(highest(unlike.__getitem__, entries, 18, recent))
        return out

    memory = layer.memory(Cascade((Sinks(4), Unlike(18, recent)), "contiguous", 4))
    loop = Loop(layer, 4, 4, "contiguous", choose)
    expected = loop.feed(stream)
    assert difference(layer.feed(memory, stream, 5)[0], expected) < 1e-5
    assert held(memory) == loop.held()
