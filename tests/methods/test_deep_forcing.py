"""deep-forcing against its card: checks (a) to (c), and a literal loop over one layer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from penstock.errors import BudgetError, CompositionError, UsageError
from penstock.memory import Cascade, Sinks, Window
from penstock.methods.deep_forcing import DeepForcing, Frames, Participative
from tests.memory.stack import Stack, difference, tokens

from .kinds import Alone
from .retaining import Entry, Loop, held, highest

FRAME = 4


def test_composition() -> None:
    """The card's frames, except that a power of two is compressed away at once: 17 of 21 are left, not 16."""
    assert DeepForcing().frames(21 * 8) == Frames(21, 10, 4, 4)
    made = DeepForcing().cascade(21 * 8)
    assert made == Cascade((Sinks(80), Participative(80, 32, 56)), "contiguous", 8)
    assert made.entries == 21 * 8
    assert DeepForcing(frame=4).frames(24) == Frames(6, 2, 1, 1)
    with pytest.raises(BudgetError, match="a budget of 24 is 3 frames of 8 tokens, too few"):
        DeepForcing().cascade(24)
    with pytest.raises(BudgetError, match="needs a budget"):
        DeepForcing().cascade(None)
    with pytest.raises(CompositionError, match="power of two"):
        DeepForcing(frame=6).cascade(400)
    with pytest.raises(UsageError, match="sum up to less than 1"):
        DeepForcing(sinks=0.9).cascade(400)


@pytest.mark.parametrize("positions", ["contiguous", "stream"])
def test_a_while_the_window_has_room_nothing_is_pruned(positions: str) -> None:
    layer, stream = Stack(windows=(None,)), tokens(21 * FRAME)
    cascade = DeepForcing(FRAME, positions=positions).cascade(21 * FRAME)  # type: ignore[arg-type]
    sinks_only = Cascade((Sinks(10 * FRAME), Window(10 * FRAME)), positions, FRAME)
    got = layer.feed(layer.memory(cascade), stream, 7)
    assert difference(got, layer.feed(layer.memory(sinks_only), stream, 7)) < 1e-6
    assert difference(got, layer.expected(stream, Cascade((Window(99),), "stream"))) < 1e-5


def test_b_after_compression_sinks_and_recent_are_as_they_were() -> None:
    found = DeepForcing(FRAME).frames(21 * FRAME)
    cascade = DeepForcing(FRAME).cascade(21 * FRAME)
    layer = Stack(windows=(None,))
    memory = layer.memory(cascade)
    lane, sizes = memory.groups[0].lanes[0][0][0], []
    for part in range(40):
        before = lane.states
        layer.feed(memory, tokens(FRAME, part))
        states = memory.groups[0].lanes[0][0][0].states
        sinks, rest = states[0]["held"], states[1]["held"]
        sizes.append((len(sinks) + len(rest)) // FRAME)
        recent = found.recent * FRAME - FRAME
        assert torch.equal(rest.key[:, -FRAME - recent : -FRAME], before[1]["held"].key[:, -recent:])
        assert torch.equal(rest.value[:, -FRAME - recent : -FRAME], before[1]["held"].value[:, -recent:])
        if part >= found.sinks:
            assert sinks is before[0]["held"]
        lane = memory.groups[0].lanes[0][0][0]
        assert (rest.seen.diff(dim=1) > 0).all(), "the kept tokens are in temporal order"
    assert sizes == [*range(1, 21), *([17, 18, 19, 20] * 5)]


@pytest.mark.parametrize("delta", [1, 7, 1000, -12])
def test_c_turning_on_equals_turning_anew(delta: int) -> None:
    place = Alone(DeepForcing(FRAME).cascade(21 * FRAME)).place
    rotary = Stack().geometry.layers[0].encoding
    object.__setattr__(place.layer, "encoding", rotary)
    key = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0))
    at = torch.arange(30).expand(2, -1)
    assert difference(place.turn(place.turn(key, at), torch.full_like(at, delta)), place.turn(key, at + delta)) < 1e-5


@pytest.mark.parametrize("positions", ["contiguous", "stream"])
def test_equals_the_literal_sum_of_products(positions: str) -> None:
    """Every recent query times every candidate, one by one."""
    layer, stream = Stack(windows=(None,)), tokens(91, 4)
    sinks, recent, size, stays = 8, 8, 28, 24

    def choose(loop: Loop, heads: Sequence[list[Entry]]) -> Sequence[list[Entry]]:
        out = []
        for h, entries in enumerate(heads):
            now = len(loop.queries)
            where = dict(zip((e.seen for e in loop.heads[h]), loop.at(loop.heads[h])))
            asking = [(q, r) for q in range(h * loop.group, (h + 1) * loop.group) for r in range(now - recent, now)]
            score = {
                e: sum(loop.product(loop.queries[r][q], e.key, where[r] - where[e.seen]) for q, r in asking)
                for e in entries
            }
            out.append(highest(score.__getitem__, entries, stays, recent) if len(entries) > size else entries)
        return out

    memory = layer.memory(Cascade((Sinks(sinks), Participative(size, recent, stays)), positions, FRAME))
    loop = Loop(layer, sinks, FRAME, positions, choose)
    expected = loop.feed(stream)
    assert difference(layer.feed(memory, stream, 7)[0], expected) < 1e-5
    assert held(memory) == [h[: len(h) - 3] for h in loop.held()]
