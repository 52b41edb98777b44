"""Kinds of token keep to their own segments; what leaves them leaves in stream order."""

from __future__ import annotations

import pytest
import torch

from penstock.core import Kind
from penstock.errors import BudgetError, CompositionError
from penstock.memory import Cascade, Everything, Sinks, Window
from penstock.memory.routing import ByKind, FrameWindow
from tests.methods.kinds import ANSWER, TEXT, VISION, Alone, random_kinds

AUDIO = int(Kind.AUDIO)


def routed() -> ByKind:
    return ByKind((((TEXT, ANSWER), (Sinks(3), Window(5))), ((VISION,), (FrameWindow(2, 4),))))


def test_each_kind_has_its_own_segments() -> None:
    alone, kinds = Alone(Cascade((routed(), Window(1000)), "stream", 8)), random_kinds(400, 1, frame=4)
    for part in kinds[:400].split(8):
        alone.feed(torch.randn(2, len(part), 4), part)
    text = [i for i in range(400) if kinds[i] != VISION]
    seen = [i for i in range(400) if kinds[i] == VISION]
    frames = [seen[i : i + 4] for i in range(0, len(seen), 4)]  # the last may be unfinished
    kept = frames[-2:]
    assert alone.held()[0] == sorted(text[:3] + text[-5:] + [i for frame in kept for i in frame])
    gone = alone.states[1]["held"].seen[0].tolist()
    assert sorted(gone + alone.held()[0]) == list(range(400))


def test_what_leaves_together_leaves_in_stream_order() -> None:
    alone, kinds = Alone(Cascade((routed(),), "stream", 8)), random_kinds(200, 2, frame=4)
    for part in kinds[:200].split(8):
        for gone in alone.feed(torch.randn(2, len(part), 4), part):
            assert gone.seen[0].tolist() == sorted(gone.seen[0].tolist())


def test_kinds_without_a_route_pass_through() -> None:
    alone = Alone(Cascade((routed(), Window(1000)), "stream", 4))
    alone.feed(torch.randn(2, 4, 4), torch.tensor([TEXT, AUDIO, VISION, AUDIO]))
    assert alone.held() == [[0, 2], [1, 3]]


def test_frames_leave_whole_however_they_arrive() -> None:
    alone = Alone(Cascade((FrameWindow(3, 5),), "stream", 8))
    for _ in range(20):
        alone.feed(torch.randn(2, 8, 4), torch.full((8,), VISION))
        held = alone.held()[0]
        assert held[0] % 5 == 0
        assert alone.count - len(held) == held[0]
        assert len(held) <= 15
        assert len(held) > 10 or held[0] == 0


def test_numbers_are_joined_over_all_routes() -> None:
    alone = Alone(Cascade((routed(),), "contiguous", 8))
    kinds = random_kinds(96, 3, frame=4)[:96]
    for part in kinds.split(8):
        alone.feed(torch.randn(2, 8, 4), part)
    part = routed()
    held = part.held(alone.states[0])
    assert held is not None
    assert held.shape == (2, len(alone.held()[0]))
    assert sorted(held[0].tolist()) == alone.held()[0]
    names = [name for name in alone.states[0] if name.endswith("held")]
    assert torch.equal(held, torch.cat([alone.states[0][name].seen for name in names], dim=1))


def test_mistakes_are_refused() -> None:
    with pytest.raises(CompositionError, match="name each once"):
        ByKind((((TEXT,), (Window(4),)), ((TEXT, VISION), (Window(4),))))
    with pytest.raises(CompositionError, match="leave empty ones out"):
        ByKind((((TEXT,), ()),))
    with pytest.raises(CompositionError, match="use Window"):
        ByKind((((TEXT,), (Everything(),)),))
    with pytest.raises(BudgetError, match="cannot be kept"):
        FrameWindow(2, 0)
